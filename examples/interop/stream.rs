//! `interop stream …`: the encrypted stream and its channels, against npm's over TCP.
//!
//! - `stream echo <port> initiator|responder`: shakes hands with XX and sends every message back.
//! - `stream noise initiator|responder <seed> <prologue> [<remote key>]` (hex): IK message by message.
//!   Commands `{"write": payload}`, `{"read": message}`; `{"finish": port}` goes on with the agreed
//!   keys on a TCP connection, echoing.
//! - `stream mux <port> initiator|responder`: channels. Commands `open {name, protocol, id, handshake,
//!   aliases}`, `accept {protocol}` (opens what the remote opens, named by its id), `send {name, kind,
//!   data | size}`, `batch {name, messages}`, `close {name}`, `end {}`; events `opened`, `message`,
//!   `closed`, `ended`.

#![allow(clippy::unwrap_used, reason = "a test program: a panic is a failed test")]

use std::collections::HashMap;
use std::io::BufRead;
use std::sync::{Arc, Mutex};

use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::protomux::{Channel, ChannelOptions, MuxOptions, Protomux, RemoteOpen};
use alex_p2p::secret_stream::{
    Handshake, Pattern, SecretStream, SecretStreamError, StreamOptions, connect_xx,
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpStream;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs one of the subcommands.
pub fn run(arguments: impl Iterator<Item = String>) -> Result<(), Failure> {
    let arguments: Vec<String> = arguments.collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments[..] {
            ["echo", port, role] => {
                let socket = TcpStream::connect(("127.0.0.1", port.parse()?)).await?;
                let keys = KeyPair::generate();
                echo(connect_xx(socket, role == "initiator", &keys).await?).await
            }
            ["noise", role, seed, prologue] => noise(role, seed, prologue, None).await,
            ["noise", role, seed, prologue, remote] => {
                noise(role, seed, prologue, Some(remote)).await
            }
            ["mux", port, role] => mux(port.parse()?, role == "initiator").await,
            _ => Err("usage: interop stream echo|noise|mux …".into()),
        }
    })
}

async fn echo(stream: SecretStream) -> Result<(), Failure> {
    print(json!({
        "event": "connected",
        "publicKey": hex(stream.public_key().as_bytes()),
        "remotePublicKey": hex(stream.remote_public_key().as_bytes()),
        "hash": hex(stream.handshake_hash()),
    }));
    let (mut sender, mut receiver) = stream.split();
    let (mut messages, mut bytes) = (0, 0);
    let outcome = loop {
        match receiver.recv().await {
            Ok(Some(message)) => {
                messages += 1;
                bytes += message.len();
                sender.send(&message).await?;
            }
            Ok(None) => break "end".to_owned(),
            Err(SecretStreamError::Truncated) => break "truncated".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    if outcome == "end" {
        sender.shutdown().await?;
    }
    print(json!({"event": "ended", "how": outcome, "messages": messages, "bytes": bytes}));
    Ok(())
}

async fn noise(
    role: &str,
    seed: &str,
    prologue: &str,
    remote: Option<&str>,
) -> Result<(), Failure> {
    let keys = KeyPair::from_seed(unhex(seed)?.as_slice().try_into()?);
    let remote = match remote {
        Some(remote) => Some(PublicKey::from_bytes(unhex(remote)?.as_slice().try_into()?)),
        None => None,
    };
    let prologue = unhex(prologue)?;
    let initiator = role == "initiator";
    let mut handshake = Handshake::new(Pattern::IK, initiator, &keys, remote.as_ref(), &prologue)?;
    let mut commands = commands();
    while let Some(command) = commands.recv().await {
        if let Some(payload) = command["write"].as_str() {
            let message = handshake.write(&unhex(payload)?)?;
            print(json!({"event": "written", "message": hex(&message)}));
        } else if let Some(message) = command["read"].as_str() {
            match handshake.read(&unhex(message)?) {
                Ok(payload) => print(json!({
                    "event": "read",
                    "payload": hex(&payload),
                    "remote": handshake.remote_public_key().map(|key| hex(key.as_bytes())),
                })),
                Err(error) => print(json!({"event": "refused", "why": error.to_string()})),
            }
        } else if let Some(port) = command["finish"].as_u64() {
            let session = handshake.finish()?;
            print(json!({
                "event": "session",
                "hash": hex(&session.handshake_hash),
                "id": hex(&session.stream_id(initiator)),
                "remoteId": hex(&session.stream_id(!initiator)),
            }));
            let socket = TcpStream::connect(("127.0.0.1", u16::try_from(port)?)).await?;
            // Without keep-alive, empty messages are messages.
            let mut options = StreamOptions::default();
            options.keep_alive = None;
            return echo(SecretStream::with_options(socket, session, options)).await;
        }
    }
    Ok(())
}

/// Channels by the name that the test gave them.
type Channels = Arc<Mutex<HashMap<String, Arc<Channel>>>>;

async fn mux(port: u16, initiator: bool) -> Result<(), Failure> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let stream = connect_xx(socket, initiator, &KeyPair::generate()).await?;
    let mux = Protomux::new(stream, MuxOptions { paused: true });
    let channels = Channels::default();
    let closing = mux.clone();
    let ended = tokio::spawn(async move {
        let reason = closing.closed().await;
        closing.finished().await;
        print(json!({"event": "ended", "reason": reason.to_string()}));
    });
    let mut commands = commands();
    while let Some(command) = commands.recv().await {
        if let Err(error) = obey(&mux, &channels, &command).await {
            print(json!({"event": "failed", "command": command, "message": error.to_string()}));
        }
    }
    mux.close();
    ended.await?;
    Ok(())
}

async fn obey(mux: &Protomux, channels: &Channels, command: &Value) -> Result<(), Failure> {
    let text = |field: &str| command[field].as_str().unwrap_or_default().to_owned();
    let channel = || {
        let channel = channels.lock().unwrap().get(&text("name")).cloned();
        channel.ok_or("no channel of this name")
    };
    match text("do").as_str() {
        "start" => mux.start(),
        "open" => {
            let aliases = command["aliases"].as_array().into_iter().flatten();
            let channel = mux.open(ChannelOptions {
                protocol: text("protocol"),
                id: unhex(&text("id"))?,
                handshake: unhex(&text("handshake"))?,
                aliases: aliases.filter_map(|name| Some(name.as_str()?.to_owned())).collect(),
                ..Default::default()
            })?;
            follow(channels, text("name"), channel);
        }
        "accept" => {
            let (opener, channels) = (mux.clone(), Arc::clone(channels));
            let accept = move |opened: RemoteOpen| {
                let options = ChannelOptions {
                    protocol: opened.protocol.clone(),
                    id: opened.id.clone(),
                    handshake: b"accepted".to_vec(),
                    ..Default::default()
                };
                if let Ok(channel) = opener.open(options) {
                    follow(&channels, hex(&opened.id), channel);
                }
            };
            mux.on_open(&text("protocol"), Arc::new(accept));
        }
        "send" => {
            let (channel, kind) = (channel()?, number(&command["kind"]));
            match command["size"].as_u64() {
                Some(size) => channel.send(kind, &vec![7; usize::try_from(size)?]).await?,
                None => channel.send(kind, &unhex(&text("data"))?).await?,
            }
        }
        "batch" => {
            let mut messages = Vec::new();
            for message in command["messages"].as_array().ok_or("no messages")? {
                let data = unhex(message["data"].as_str().unwrap_or_default())?;
                messages.push((number(&message["kind"]), vec![Bytes::from(data)]));
            }
            channel()?.send_batch(&messages).await?;
        }
        "close" => {
            let closed = channels.lock().unwrap().remove(&text("name"));
            closed.ok_or("no channel of this name")?.close();
        }
        "end" => mux.close(),
        other => return Err(format!("unknown command {other}").into()),
    }
    Ok(())
}

/// Tells what happens on a channel.
fn follow(channels: &Channels, name: String, channel: Channel) {
    let channel = Arc::new(channel);
    channels.lock().unwrap().insert(name.clone(), Arc::clone(&channel));
    tokio::spawn(async move {
        match channel.opened().await {
            Ok(handshake) => {
                print(json!({"event": "opened", "name": name, "handshake": hex(&handshake)}));
            }
            Err(error) => {
                print(json!({"event": "unopened", "name": name, "why": format!("{error:?}")}))
            }
        }
        while let Some(message) = channel.recv().await {
            let data = &message.data;
            print(json!({
                "event": "message",
                "name": name,
                "kind": message.kind,
                "size": data.len(),
                "data": hex(&data[..data.len().min(64)]),
            }));
        }
        print(json!({"event": "closed", "name": name}));
    });
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}

/// The JSON lines of stdin.
fn commands() -> tokio::sync::mpsc::UnboundedReceiver<Value> {
    let (give, take) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(command) = serde_json::from_str(&line) else { continue };
            if give.send(command).is_err() {
                return;
            }
        }
    });
    take
}

fn print(line: Value) {
    println!("{line}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>, Failure> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    if digits.len() != text.len() || !digits.len().is_multiple_of(2) {
        return Err(format!("{text} is not hexadecimal").into());
    }
    Ok(digits.chunks_exact(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
}
