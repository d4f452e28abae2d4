//! `interop dht testnet <size> [bootstrap]`: nodes of ours, as a network or part of one.
//!
//! `interop dht node <bootstrap> [--firewalled] [--host=<ip>] [--patience=<seconds>]`: one node, driven by JSON lines:
//! `{"do": "listen", "allow": [keys], "through": key}`, `{"do": "connect", "key", "rounds", "through": key}`,
//! `{"do": "hold", "key", "through": key}`, `{"do": "relay", "allow": [keys], "bytesPerSecond"}`,
//! `{"do": "join", "topic", "announce", "lookup"}`, `{"do": "lookup", "topic"}`, `{"do": "status"}`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::hyperdht::{
    ConnectOptions, Connection, DhtOptions, Firewall, HyperDht, JoinOptions, Path, RelayOptions,
    RelayServer, RelayThrough, Server, ServerOptions, Testnet,
};
use alex_p2p::protomux::{MuxOptions, Protomux};
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Runs the subcommand until stdin ends.
pub fn run(arguments: impl Iterator<Item = String>) -> Outcome {
    let arguments: Vec<String> = arguments.collect();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.first().map(String::as_str) {
            Some("testnet") => testnet(&arguments[1..]).await,
            Some("node") => node(&arguments[1..]).await,
            _ => Err("usage: interop dht testnet <size> [bootstrap] | node <bootstrap>".into()),
        }
    })
}

/// The lines of stdin, read by a thread of their own.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn print(value: &Value) {
    println!("{value}");
}

async fn testnet(arguments: &[String]) -> Outcome {
    let size = arguments.first().map_or(Ok(4), |size| size.parse())?;
    let bootstrap = arguments[1.min(arguments.len())..].iter();
    let bootstrap = bootstrap.map(|node| node.parse()).collect::<Result<Vec<_>, _>>()?;
    let testnet = Testnet::extend(size, bootstrap).await?;
    let nodes: Vec<String> =
        testnet.nodes().iter().map(|node| node.local_addr().to_string()).collect();
    let ephemeral = testnet.nodes().iter().filter(|node| node.status().ephemeral).count();
    print(&json!({ "event": "testnet", "nodes": nodes, "ephemeral": ephemeral }));
    let mut lines = lines();
    while lines.recv().await.is_some() {}
    testnet.close().await;
    Ok(())
}

async fn node(arguments: &[String]) -> Outcome {
    let (flags, nodes): (Vec<&String>, Vec<&String>) =
        arguments.iter().partition(|argument| argument.starts_with("--"));
    let bootstrap = nodes.iter().map(|node| node.parse()).collect::<Result<Vec<_>, _>>()?;
    let host = flags.iter().find_map(|flag| flag.strip_prefix("--host="));
    let patience = flags.iter().find_map(|flag| flag.strip_prefix("--patience="));
    let patience = Duration::from_secs(patience.map_or(Ok(15), str::parse)?);
    let keys = KeyPair::generate();
    let dht = HyperDht::bind(DhtOptions {
        bootstrap,
        host: host.map_or(Ok([127, 0, 0, 1].into()), str::parse)?,
        port: 0,
        key_pair: keys.clone(),
        quick_firewall: !flags.iter().any(|flag| *flag == "--firewalled"),
        ..DhtOptions::default()
    })?;
    dht.bootstrapped().await;
    let address = dht.local_addr().to_string();
    print(
        &json!({ "event": "ready", "key": hex(keys.public_key().as_bytes()), "address": address }),
    );
    let mut lines = lines();
    let mut topics = Vec::new();
    while let Some(line) = lines.recv().await {
        let command: Value = serde_json::from_str(&line)?;
        match command["do"].as_str() {
            Some("listen") => {
                let allow = command["allow"].as_array().cloned();
                let relay_through = through(&command)?;
                let server = listen(&dht, &keys, allow, relay_through).await?;
                tokio::spawn(accept(server));
            }
            Some("relay") => {
                let allow = command["allow"].as_array().cloned();
                let mut options = RelayOptions::default();
                let rate = command["bytesPerSecond"].as_u64().map(u32::try_from).transpose()?;
                if let Some(rate) = rate {
                    options.bytes_per_second = rate.try_into()?;
                }
                let server = listen(&dht, &keys, allow, None).await?;
                tokio::spawn(relay(server, RelayServer::new(&dht, options)));
            }
            Some("hold") => {
                let (dht, key) = (dht.clone(), PublicKey::from_bytes(unhex(&command["key"])?));
                let relay_through = through(&command)?;
                tokio::spawn(async move {
                    if let Err(error) = hold(&dht, &key, relay_through).await {
                        print(&json!({ "event": "connect-failed", "error": error.to_string() }));
                    }
                });
            }
            Some("connect") => connect(&dht, &command, patience).await?,
            Some("join") => {
                let announce = command["announce"].as_bool() == Some(true);
                let lookup = command["lookup"].as_bool() == Some(true);
                let announce = announce.then(|| keys.clone());
                let topic = unhex(&command["topic"])?;
                let mut topic = dht.join(&topic, JoinOptions { announce, lookup });
                topic.flushed().await;
                print(&json!({ "event": "joined" }));
                topics.push(tokio::spawn(async move {
                    while let Some(found) = topic.next().await {
                        let key = hex(found.public_key.as_bytes());
                        print(
                            &json!({ "event": "found", "key": key, "addresses": found.addresses }),
                        );
                    }
                }));
            }
            Some("lookup") => {
                let found = dht.lookup(&unhex(&command["topic"])?).await;
                let keys: Vec<String> =
                    found.iter().map(|peer| hex(peer.public_key.as_bytes())).collect();
                print(&json!({ "event": "looked-up", "keys": keys }));
            }
            Some("status") => {
                let status = dht.status();
                print(&json!({
                    "event": "status",
                    "ephemeral": status.ephemeral,
                    "firewalled": status.firewalled,
                    "remote": status.remote_address,
                    "nodes": status.nodes,
                }));
            }
            _ => return Err(format!("unknown command {line}").into()),
        }
    }
    dht.close().await;
    Ok(())
}

/// The relay that a command names.
fn through(command: &Value) -> Outcome<Option<RelayThrough>> {
    if command["through"].is_null() {
        return Ok(None);
    }
    let relay = PublicKey::from_bytes(unhex(&command["through"])?);
    Ok(Some(Arc::new(move |_| Some(relay))))
}

async fn listen(
    dht: &HyperDht,
    keys: &KeyPair,
    allow: Option<Vec<Value>>,
    relay_through: Option<RelayThrough>,
) -> Outcome<Server> {
    let firewall: Firewall = Arc::new(move |key: &PublicKey, _: SocketAddr| {
        let key = hex(key.as_bytes());
        let admit = allow.as_ref().is_none_or(|allow| allow.iter().any(|allowed| *allowed == key));
        if !admit {
            print(&json!({ "event": "refused", "key": key }));
        }
        admit
    });
    let options = ServerOptions { relay_through, ..ServerOptions::new(firewall) };
    let server = dht.listen_with(keys, options)?;
    server.announced().await;
    let key = hex(keys.public_key().as_bytes());
    print(&json!({ "event": "listening", "key": key, "addresses": server.addresses() }));
    Ok(server)
}

/// Relays for everybody who connects.
async fn relay(server: Server, relay: RelayServer) {
    while let Some(connection) = server.accept().await {
        let mux = Protomux::new(connection.stream, MuxOptions { paused: true });
        relay.attach(&mux);
        mux.start();
        tokio::spawn(async move { mux.closed().await });
    }
}

/// Keeps a connection, with an echo now and then, and tells how it goes.
async fn hold(dht: &HyperDht, key: &PublicKey, relay_through: Option<RelayThrough>) -> Outcome {
    let start = Instant::now();
    let options = ConnectOptions { relay_through, ..ConnectOptions::default() };
    let connection = dht.connect(key, options).await?;
    tell_path(connection.path.clone());
    let (mut sender, mut receiver) = connection.stream.split();
    for round in 0_u64.. {
        sender.send(format!("round {round}").as_bytes()).await?;
        receiver.recv().await?.ok_or("the connection ended")?;
        if round == 0 {
            let ms = start.elapsed().as_secs_f64() * 1000.0;
            print(&json!({ "event": "held", "ms": ms }));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Prints the path of a connection, and each other that it goes on to.
fn tell_path(path: Path) {
    tokio::spawn(async move {
        let mut before = None;
        loop {
            let kind = path.kind();
            if before.replace(kind) != Some(kind) {
                print(&json!({ "event": "path", "path": kind.as_str() }));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

async fn accept(server: Server) {
    while let Some(connection) = server.accept().await {
        print(&json!({
            "event": "connection",
            "key": hex(connection.remote_public_key().as_bytes()),
            "remote": connection.remote,
            "path": connection.path().as_str(),
        }));
        tell_path(connection.path.clone());
        tokio::spawn(echo(connection));
    }
}

async fn echo(connection: Connection) {
    let (mut sender, mut receiver) = connection.stream.split();
    while let Ok(Some(message)) = receiver.recv().await {
        if sender.send(&message).await.is_err() {
            return;
        }
    }
    let _ = sender.shutdown().await;
}

/// Connects several times, one after the other, and waits for an echo on each connection.
async fn connect(dht: &HyperDht, command: &Value, patience: Duration) -> Outcome {
    let key = PublicKey::from_bytes(unhex(&command["key"])?);
    let relay_through = through(command)?;
    let rounds = command["rounds"].as_u64().unwrap_or(1);
    let mut times = Vec::new();
    for round in 0..rounds {
        let start = Instant::now();
        let outcome =
            tokio::time::timeout(patience, once(dht, &key, round, relay_through.clone())).await;
        let outcome = outcome.unwrap_or_else(|_| Err("no echo in time".into()));
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        match outcome {
            Ok(()) => times.push(ms),
            Err(error) => {
                let error = error.to_string();
                print(&json!({ "event": "connect-failed", "error": error, "ms": ms }));
            }
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2);
    print(&json!({ "event": "connected", "count": times.len(), "median": median }));
    Ok(())
}

async fn once(
    dht: &HyperDht,
    key: &PublicKey,
    round: u64,
    relay_through: Option<RelayThrough>,
) -> Outcome {
    let options = ConnectOptions { relay_through, ..ConnectOptions::default() };
    let connection = dht.connect(key, options).await?;
    let (mut sender, mut receiver) = connection.stream.split();
    let message = format!("round {round}");
    sender.send(message.as_bytes()).await?;
    let reply = receiver.recv().await?;
    if reply.as_deref() != Some(message.as_bytes()) {
        return Err(format!("the echo of {message} is {reply:?}").into());
    }
    sender.shutdown().await?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(value: &Value) -> Outcome<[u8; 32]> {
    let text = value.as_str().ok_or("a key is missing")?;
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return Err("a key has 64 hexadecimal digits".into());
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16)?;
    }
    Ok(bytes)
}
