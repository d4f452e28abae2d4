//! `interop udx [host]`: one socket and one stream at a time, driven from stdin.
//!
//! `{"do": "stream"}` creates a stream; `connect`, `accept`, `send`, `receive`, `move`, `end`, `drop`
//! and `destroy` act on it. `interop udx perf [megabytes]` measures two ends in this process.

use std::io::BufRead;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use alex_p2p::udx::{StreamHandle, StreamOptions, Udx, UdxSocket, UdxStream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

type Problem = Box<dyn std::error::Error + Send + Sync>;

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Command {
    Stream,
    Connect {
        remote_id: u32,
        host: String,
        port: u16,
    },
    Accept {
        remote_id: u32,
    },
    Send {
        bytes: usize,
    },
    Receive {
        bytes: Option<usize>,
    },
    /// Moves the stream to a new socket and to where the other side will be.
    Move {
        remote_id: u32,
        host: String,
        port: u16,
    },
    End,
    Drop,
    Destroy,
}

/// Runs the subcommand with the arguments after its name.
pub fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), Problem> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let first = arguments.next();
    if first.as_deref() == Some("perf") {
        let megabytes = arguments.next().map_or(Ok(1000), |text| text.parse())?;
        return runtime.block_on(perf(megabytes * 1_000_000));
    }
    runtime.block_on(serve(first.as_deref().unwrap_or("127.0.0.1")))
}

fn say(line: &Value) {
    println!("{line}");
}

async fn serve(host: &str) -> Result<(), Problem> {
    let udx = Udx::new();
    let socket = udx.bind(SocketAddr::new(host.parse()?, 0))?;
    say(&json!({ "event": "ready", "port": socket.local_addr().port() }));

    let (lines, mut commands) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    let mut session = Session { udx, socket, stream: None, handle: None, halves: None };
    while let Some(line) = commands.recv().await {
        session.act(serde_json::from_str(&line)?).await?;
    }
    Ok(())
}

struct Session {
    udx: Udx,
    socket: UdxSocket,
    /// Until the first read or write.
    stream: Option<UdxStream>,
    handle: Option<StreamHandle>,
    halves: Option<(mpsc::Sender<Read>, mpsc::Sender<Write>)>,
}

struct Read(Option<usize>);

enum Write {
    Bytes(usize),
    End,
}

impl Session {
    async fn act(&mut self, command: Command) -> Result<(), Problem> {
        match command {
            Command::Stream => {
                let stream = self.udx.create_stream(StreamOptions::default());
                say(&json!({ "event": "stream", "id": stream.local_id() }));
                let handle = stream.handle();
                self.handle = Some(handle.clone());
                tokio::spawn(async move {
                    let reason = handle.closed().await;
                    say(&json!({ "event": "closed", "reason": format!("{reason:?}") }));
                });
                self.halves = None;
                self.stream = Some(stream);
            }
            Command::Connect { remote_id, host, port } => {
                let remote = SocketAddr::new(host.parse()?, port);
                self.stream()?.connect(&self.socket, remote_id, remote);
            }
            Command::Accept { remote_id } => {
                let stream = self.stream()?;
                let first = stream.on_first_packet().await;
                let (socket, from) = first.ok_or("the stream was closed")?;
                stream.connect(&socket, remote_id, from);
            }
            Command::Receive { bytes } => self.halves().0.send(Read(bytes)).await?,
            Command::Send { bytes } => self.halves().1.send(Write::Bytes(bytes)).await?,
            Command::End => self.halves().1.send(Write::End).await?,
            Command::Drop => (self.stream, self.halves) = (None, None),
            Command::Move { remote_id, host, port } => {
                let host = host.parse()?;
                self.socket = self.udx.bind(SocketAddr::new(host, 0))?;
                let handle = self.handle.as_ref().ok_or("no stream")?;
                handle.change_remote(&self.socket, remote_id, SocketAddr::new(host, port));
                let port = self.socket.local_addr().port();
                say(&json!({ "event": "moved", "port": port }));
            }
            Command::Destroy => self.stream()?.handle().destroy(),
        }
        Ok(())
    }

    fn stream(&self) -> Result<&UdxStream, Problem> {
        self.stream.as_ref().ok_or_else(|| "no stream, or one that is in use already".into())
    }

    /// Reading and writing go on at the same time, a task each.
    fn halves(&mut self) -> &(mpsc::Sender<Read>, mpsc::Sender<Write>) {
        if let Some(stream) = self.stream.take() {
            let (reader, writer) = tokio::io::split(stream);
            let (reads, read_queue) = mpsc::channel(16);
            let (writes, write_queue) = mpsc::channel(16);
            tokio::spawn(read_all(reader, read_queue));
            tokio::spawn(write_all(writer, write_queue));
            self.halves = Some((reads, writes));
        }
        self.halves.get_or_insert_with(|| (mpsc::channel(1).0, mpsc::channel(1).0))
    }
}

async fn read_all(mut reader: ReadHalf<UdxStream>, mut queue: mpsc::Receiver<Read>) {
    while let Some(Read(wanted)) = queue.recv().await {
        let (start, mut hash) = (Instant::now(), blake2b_simd::State::new());
        let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
        let error = loop {
            let left = wanted.map_or(buffer.len(), |wanted| (wanted - total).min(buffer.len()));
            match reader.read(&mut buffer[..left]).await {
                Ok(0) => break None,
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    total += read;
                }
                Err(error) => break Some(error.kind().to_string()),
            }
        };
        let (hash, ms) = (hash.finalize().to_hex(), start.elapsed().as_millis() as u64);
        say(&json!({
            "event": "received", "bytes": total, "hash": hash.as_str(), "ms": ms, "error": error
        }));
    }
}

async fn write_all(mut writer: WriteHalf<UdxStream>, mut queue: mpsc::Receiver<Write>) {
    while let Some(write) = queue.recv().await {
        match write {
            Write::Bytes(bytes) => {
                let mut hash = blake2b_simd::State::new();
                let mut left = bytes;
                let mut error = None;
                let mut block: Vec<u8> = (0..100_003u32).map(|n| (n * 7 + n / 251) as u8).collect();
                while left > 0 && error.is_none() {
                    let part = &block[..left.min(block.len())];
                    hash.update(part);
                    error =
                        writer.write_all(part).await.err().map(|error| error.kind().to_string());
                    left -= part.len();
                    block.rotate_left(1);
                }
                let hash = hash.finalize().to_hex();
                say(&json!({ "event": "sent", "hash": hash.as_str(), "error": error }));
            }
            Write::End => {
                let error = writer.shutdown().await.err().map(|error| error.kind().to_string());
                say(&json!({ "event": "ended", "error": error }));
            }
        }
    }
}

/// Sends `bytes` from one socket of this process to another and says how fast that was.
async fn perf(bytes: usize) -> Result<(), Problem> {
    let (a, b) = (Udx::new(), Udx::new());
    let localhost = SocketAddr::from(([127, 0, 0, 1], 0));
    let (left, right) = (a.bind(localhost)?, b.bind(localhost)?);
    let mut sender = a.create_stream(StreamOptions::default());
    let mut receiver = b.create_stream(StreamOptions::default());
    sender.connect(&left, receiver.local_id(), right.local_addr());
    receiver.connect(&right, sender.local_id(), left.local_addr());

    let start = Instant::now();
    let write = tokio::spawn(async move {
        let block = vec![7; 1 << 16];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(block.len());
            sender.write_all(&block[..part]).await?;
            left -= part;
        }
        sender.shutdown().await?;
        Ok::<_, std::io::Error>((sender.stats(), sender.rtt()))
    });
    let (mut buffer, mut received) = (vec![0; 1 << 18], 0);
    loop {
        match receiver.read(&mut buffer).await? {
            0 => break,
            read => received += read,
        }
    }
    let took = start.elapsed();
    receiver.shutdown().await?;
    let (stats, rtt) = write.await??;
    say(&json!({
        "event": "perf",
        "bytes": received,
        "megabytesPerSecond": received as f64 / 1e6 / took.max(Duration::from_millis(1)).as_secs_f64(),
        "retransmits": stats.retransmits,
        "rttMicros": rtt.as_micros() as u64,
    }));
    Ok(())
}
