//! Our side of measurements below the addon: raw encrypted streams, and logs; driven by JSON lines.
//!
//! `{"id", "method", "argument"}` on stdin is answered by `{"id", "value"}` or `{"id", "error"}` on
//! stdout; `benches/stream-worker.mjs` does the same with npm's packages. It ends when stdin does.
//!
//! The server answers a message of one byte with the same, and the end of a stream with the number of
//! bytes that came, 8 bytes little-endian.

mod log;
mod ping;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::hyperdht::{ConnectOptions, Connection, DhtOptions, HyperDht, Server};
use alex_p2p::secret_stream::{SecretReceiver, SecretSender};
use alex_p2p::udx::StreamHandle;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

/// What a message carries.
const CHUNK: usize = 64 * 1024;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome<T = Value> = Result<T, Failure>;

/// What stays between the calls.
#[derive(Default)]
struct Worker {
    nodes: Mutex<Vec<HyperDht>>,
    connections: Mutex<HashMap<u64, Halves>>,
}

/// A connection as it is used.
struct Halves {
    sender: SecretSender,
    receiver: SecretReceiver,
    udx: StreamHandle,
}

impl From<Connection> for Halves {
    fn from(connection: Connection) -> Self {
        let (sender, receiver) = connection.stream.split();
        Self { sender, receiver, udx: connection.udx }
    }
}

impl Halves {
    /// Waits until a byte was there and back.
    async fn echo(&mut self) -> Outcome<()> {
        self.sender.send(&[1]).await?;
        self.receiver.recv().await?.ok_or("ended without an echo")?;
        Ok(())
    }
}

fn main() -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let worker = Arc::new(Worker::default());
        let mut lines = lines();
        while let Some(line) = lines.recv().await {
            let call: Value = serde_json::from_str(&line)?;
            let worker = Arc::clone(&worker);
            tokio::spawn(async move {
                let answer = match worker.answer(&call).await {
                    Ok(value) => json!({ "id": call["id"], "value": value }),
                    Err(error) => json!({ "id": call["id"], "error": error.to_string() }),
                };
                println!("{answer}");
            });
        }
        Ok(())
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

impl Worker {
    async fn answer(&self, call: &Value) -> Outcome {
        let argument = &call["argument"];
        match call["method"].as_str() {
            Some("testnet") => self.testnet(argument).await,
            Some("listen") => self.listen(argument).await,
            Some("open") => self.open(argument).await,
            Some("push") => self.push(argument).await,
            Some("firstByte") => first_byte(argument).await,
            Some("append") => log::append(argument).await,
            Some("echo") => ping::echo(argument).await,
            Some("ping") => ping::ping(argument).await,
            other => Err(format!("no method {other:?}").into()),
        }
    }

    /// Persistent nodes at `host` that know each other; gives the address of the first.
    async fn testnet(&self, argument: &Value) -> Outcome {
        let host: IpAddr = text(argument, "host")?.parse()?;
        let mut nodes = self.nodes.lock().await;
        for _ in 0..3 {
            let bootstrap = nodes.first().map(|node| node.local_addr().to_string());
            let mut options = options(host, bootstrap.as_deref())?;
            options.ephemeral = Some(false);
            options.firewalled = false;
            if let IpAddr::V4(host) = host {
                options.public_address = Some(std::net::SocketAddrV4::new(host, 0));
            }
            let node = HyperDht::bind(options)?;
            node.bootstrapped().await;
            nodes.push(node);
        }
        Ok(json!(nodes.first().map(|node| node.local_addr().to_string())))
    }

    /// Listens on a node of its own; gives the key.
    async fn listen(&self, argument: &Value) -> Outcome {
        let keys = KeyPair::generate();
        let dht = bind(argument).await?;
        let server = dht.listen(&keys, Arc::new(|_: &PublicKey, _: SocketAddr| true))?;
        server.announced().await;
        tokio::spawn(accept(server));
        self.nodes.lock().await.push(dht);
        Ok(json!(hex(keys.public_key().as_bytes())))
    }

    /// Connects and waits until a byte came back; gives a number for [`Self::push`].
    async fn open(&self, argument: &Value) -> Outcome {
        let dht = bind(argument).await?;
        let mut connection = connect(&dht, argument).await?;
        connection.echo().await?;
        let mut connections = self.connections.lock().await;
        let number = connections.len() as u64;
        connections.insert(number, connection);
        self.nodes.lock().await.push(dht);
        Ok(json!(number))
    }

    /// Sends `bytes`, or for `seconds`; gives the bytes that arrived and the milliseconds from the
    /// first write until the other side said so.
    async fn push(&self, argument: &Value) -> Outcome {
        let number = argument["connection"].as_u64().ok_or("connection is missing")?;
        let connection = self.connections.lock().await.remove(&number);
        let Halves { mut sender, mut receiver, udx } = connection.ok_or("no connection")?;
        let bytes = argument["bytes"].as_u64().unwrap_or(u64::MAX);
        let time = argument["seconds"].as_f64().map_or(Duration::MAX, Duration::from_secs_f64);
        let chunk = vec![7; CHUNK];
        let start = Instant::now();
        let mut sent = 0;
        while sent < bytes && start.elapsed() < time {
            let length = (bytes - sent).min(CHUNK as u64);
            sender.send(&chunk[..length as usize]).await?;
            sent += length;
        }
        sender.shutdown().await?;
        let said = receiver.recv().await?.ok_or("ended without a count")?;
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        let arrived = u64::from_le_bytes(said.as_ref().try_into()?);
        if arrived != sent + 1 {
            return Err(format!("{arrived} of {} bytes arrived", sent + 1).into());
        }
        let stats = udx.stats();
        Ok(json!({ "bytes": sent, "ms": ms, "retransmits": stats.retransmits }))
    }
}

/// The milliseconds from knowing the key to the first byte back, a fresh client each time.
async fn first_byte(argument: &Value) -> Outcome {
    let mut times = Vec::new();
    for _ in 0..argument["rounds"].as_u64().unwrap_or(1) {
        let dht = bind(argument).await?;
        let start = Instant::now();
        let mut connection = connect(&dht, argument).await?;
        connection.echo().await?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        drop(connection);
        dht.close().await;
    }
    times.sort_by(f64::total_cmp);
    Ok(json!(times.get(times.len() / 2)))
}

async fn connect(dht: &HyperDht, argument: &Value) -> Outcome<Halves> {
    Ok(dht.connect(&key(argument)?, ConnectOptions::default()).await?.into())
}

async fn accept(server: Server) {
    while let Some(connection) = server.accept().await {
        tokio::spawn(async move {
            if let Err(error) = serve(connection).await {
                eprintln!("serving: {error}");
            }
        });
    }
}

async fn serve(connection: Connection) -> Outcome<()> {
    let Halves { mut sender, mut receiver, .. } = connection.into();
    let mut arrived = 0;
    while let Some(message) = receiver.recv().await? {
        arrived += message.len() as u64;
        if message.len() == 1 {
            sender.send(&message).await?;
        }
    }
    sender.send(&arrived.to_le_bytes()).await?;
    sender.shutdown().await?;
    Ok(())
}

/// A node at `host` that knows the network of `bootstrap`.
async fn bind(argument: &Value) -> Outcome<HyperDht> {
    let host = text(argument, "host")?.parse()?;
    let dht = HyperDht::bind(options(host, Some(text(argument, "bootstrap")?))?)?;
    dht.bootstrapped().await;
    Ok(dht)
}

fn options(host: IpAddr, bootstrap: Option<&str>) -> Outcome<DhtOptions> {
    let bootstrap = bootstrap.iter().map(|node| node.parse()).collect::<Result<_, _>>()?;
    Ok(DhtOptions { bootstrap, host, port: 0, ..DhtOptions::default() })
}

fn text<'a>(argument: &'a Value, field: &str) -> Outcome<&'a str> {
    argument[field].as_str().ok_or_else(|| format!("{field} is missing").into())
}

fn key(argument: &Value) -> Outcome<PublicKey> {
    let text = text(argument, "key")?;
    let byte = |at| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    let bytes: [u8; 32] = bytes.ok_or("not hexadecimal")?.try_into().map_err(|_| "not a key")?;
    Ok(PublicKey::from_bytes(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
