//! `interop replicate`: cores in memory (or a file), replicated over plain TCP with a secret stream.
//!
//! Prints `{"event":"listening","port"}`, then takes commands, one JSON object a line:
//!
//! - `create {name, compat?}`, `static {name, path}`, `open {name, key, path?, download?}`: a core,
//!   answered by `core {name, key, length}`; `add {name}` replicates one made with `later: true`.
//! - `append {name, count, size?, prefix?}` → `appended {name, length}`
//! - `truncate {name, length}` → `truncated {name, fork, length}`
//! - `wait-fork {name, fork, length}` → `forked {name}`, once it is at that fork and length and whole
//! - `wait {name, length}` → `synced {name, length, elapsed_ms}`
//! - `digest {name}` → `digest {name, length, bytes, digest}` over all blocks
//! - `peers {name}` → `peers {name, peers}`
//! - `get`, `range`, `seek`, `clear`: see `parts.rs`
//! - `download {name, all}`, `allow {name, upload}`: changes policy
//! - `connect {port}` → `connected`; `disconnect`: closes all connections
//!
//! `closed {reason}` and `violation {reason}` come by themselves.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::parts;
use alex_p2p::crypto::{Hash, KeyPair, keyed_hash};
use alex_p2p::hypercore::replicator::{CoreHandle, Download, EventKind, Policy, Replicator};
use alex_p2p::hypercore::{
    BLOCK_SIZE, BlockSource, Core, CreateOptions, FileAccess, Manifest, MemoryStorage, OpenOptions,
    StaticTree,
};
use alex_p2p::protomux::{MuxOptions, Protomux};
use alex_p2p::secret_stream::connect_xx;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One core by name.
#[derive(Clone)]
struct Named {
    core: Core,
    handle: Option<CoreHandle>,
    upload: Arc<AtomicBool>,
}

struct Program {
    replicator: Replicator,
    storage: MemoryStorage,
    keys: KeyPair,
    cores: Mutex<HashMap<String, Named>>,
    connections: Mutex<Vec<Protomux>>,
}

/// Runs the program until stdin ends.
pub fn main() -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<(), Failure> {
    let program = Arc::new(Program {
        replicator: Replicator::new(),
        storage: MemoryStorage::new(),
        keys: KeyPair::generate(),
        cores: Mutex::default(),
        connections: Mutex::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    print(json!({"event": "listening", "port": listener.local_addr()?.port()}));
    tokio::spawn(watch(Arc::clone(&program)));
    let accepting = Arc::clone(&program);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(Arc::clone(&accepting).serve(socket, false));
        }
    });
    let mut commands = commands();
    while let Some(command) = commands.recv().await {
        let program = Arc::clone(&program);
        tokio::spawn(async move {
            if let Err(error) = program.run(&command).await {
                print(json!({"event": "error", "command": command, "message": error.to_string()}));
            }
        });
    }
    Ok(())
}

fn commands() -> tokio::sync::mpsc::UnboundedReceiver<Value> {
    let (send, receive) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.send(serde_json::from_str(&line).unwrap_or(Value::Null)).is_err() {
                break;
            }
        }
    });
    receive
}

async fn watch(program: Arc<Program>) {
    let mut events = program.replicator.events();
    while let Ok(event) = events.recv().await {
        match event.kind {
            EventKind::Violation { violation } => {
                print(json!({"event": "violation", "reason": violation.to_string()}));
            }
            EventKind::PeerJoined | EventKind::PeerLeft => {}
            other => print(json!({"event": "trouble", "what": format!("{other:?}")})),
        }
    }
}

impl Program {
    async fn serve(self: Arc<Self>, socket: TcpStream, initiator: bool) {
        let _ = socket.set_nodelay(true);
        let stream = match connect_xx(socket, initiator, &self.keys).await {
            Ok(stream) => stream,
            Err(error) => return print(json!({"event": "closed", "reason": error.to_string()})),
        };
        let mux = Protomux::new(stream, MuxOptions { paused: true });
        self.replicator.attach(&mux);
        lock(&self.connections).push(mux.clone());
        mux.start();
        print(json!({"event": "connected"}));
        print(json!({"event": "closed", "reason": mux.closed().await.to_string()}));
    }

    async fn run(self: Arc<Self>, command: &Value) -> Result<(), Failure> {
        let name = command["name"].as_str().unwrap_or_default().to_owned();
        let number = |field: &str| command[field].as_u64();
        match command["command"].as_str().unwrap_or_default() {
            "create" => {
                let keys = KeyPair::generate();
                let manifest = Manifest::single(keys.public_key());
                let compat = command["compat"].as_bool().unwrap_or(false);
                let options = CreateOptions { manifest, writer: Some(keys), compat };
                let core = Core::create(&self.storage, options)?;
                self.insert(&name, core, Policy::serve(), command);
            }
            "static" => {
                let path = PathBuf::from(command["path"].as_str().unwrap_or_default());
                let started = Instant::now();
                let tree = StaticTree::build(&path, None).await?;
                let core = Core::open_static(&self.storage, &tree).await?;
                self.insert(&name, core, Policy::serve(), command);
                print(json!({"event": "hashed", "elapsed_ms": millis(started)}));
            }
            "open" => {
                let blocks = match command["path"].as_str() {
                    Some(path) => BlockSource::File {
                        path: path.into(),
                        block_size: BLOCK_SIZE,
                        access: FileAccess::Write,
                    },
                    None => BlockSource::Storage,
                };
                let key = key(command["key"].as_str().unwrap_or_default())?;
                let options = OpenOptions { blocks, ..OpenOptions::default() };
                let core = Core::open(&self.storage, key, options)?;
                let fetch = command["download"].as_bool().unwrap_or(true);
                let on_demand = command["onDemand"].as_bool().unwrap_or(false);
                let policy = match (fetch, on_demand) {
                    (_, true) => Policy::on_demand(),
                    (true, false) => Policy::fetch(),
                    (false, false) => Policy::serve(),
                };
                self.insert(&name, core, policy, command);
            }
            "add" => {
                let named = self.named(&name)?;
                self.insert(&name, named.core, Policy::serve(), &Value::Null);
            }
            "append" => {
                let core = self.named(&name)?.core;
                let size = number("size").unwrap_or(100) as usize;
                let prefix = command["prefix"].as_str().unwrap_or("entry");
                let first = core.length();
                let blocks = (0..number("count").unwrap_or(1)).map(|i| {
                    let mut block = format!("{prefix} {} ", first + i).into_bytes();
                    block.resize(size.max(block.len()), b'.');
                    Bytes::from(block)
                });
                let length = core.append(blocks.collect()).await?;
                print(json!({"event": "appended", "name": name, "length": length}));
            }
            "truncate" => {
                let core = self.named(&name)?.core;
                let fork = core.truncate(number("length").unwrap_or(0), None).await?;
                print(json!({"event": "truncated", "name": name, "fork": fork,
                    "length": core.length()}));
            }
            "wait-fork" => {
                let core = self.named(&name)?.core;
                let (fork, length) = (number("fork"), number("length"));
                let mut changes = core.subscribe();
                changes
                    .wait_for(|state| {
                        Some(state.fork) == fork
                            && Some(state.length) == length
                            && state.contiguous_length == state.length
                    })
                    .await?;
                print(json!({"event": "forked", "name": name}));
            }
            "wait" => {
                let (core, length) = (self.named(&name)?.core, number("length").unwrap_or(0));
                let started = Instant::now();
                let mut changes = core.subscribe();
                changes.wait_for(|state| state.contiguous_length >= length).await?;
                let elapsed_ms = millis(started);
                let length = core.length();
                print(json!({"event": "synced", "name": name, "length": length,
                    "elapsed_ms": elapsed_ms}));
            }
            "digest" => {
                let core = self.named(&name)?.core;
                let (mut digest, mut at, mut bytes) = ([0; 32], 0, 0);
                while at < core.contiguous_length() {
                    for block in core.range(at..core.length(), 1 << 20)? {
                        digest = keyed_hash(&digest, &[&block]);
                        bytes += block.len();
                        at += 1;
                    }
                }
                print(json!({"event": "digest", "name": name, "length": at, "bytes": bytes,
                    "digest": hex(&digest)}));
            }
            "peers" => {
                let handle = self.named(&name)?.handle.ok_or("not replicated")?;
                let peers: Vec<_> = handle
                    .peers()
                    .iter()
                    .map(|peer| {
                        json!({
                            "remoteLength": peer.remote.length,
                            "remoteContiguousLength": peer.remote_contiguous_length,
                            "downloadedBlocks": peer.downloaded_blocks,
                            "uploadedBlocks": peer.uploaded_blocks,
                            "hotswaps": peer.hotswaps,
                        })
                    })
                    .collect();
                print(json!({"event": "peers", "name": name, "peers": peers}));
            }
            "download" => {
                let all = command["all"].as_bool().unwrap_or(true);
                let handle = self.named(&name)?.handle.ok_or("not replicated")?;
                handle.set_download(if all { Download::All } else { Download::None });
            }
            "allow" => {
                let named = self.named(&name)?;
                let upload = command["upload"].as_bool().unwrap_or(true);
                named.upload.store(upload, Ordering::SeqCst);
                named.handle.ok_or("not replicated")?.refresh();
            }
            "connect" => {
                let port = number("port").unwrap_or(0) as u16;
                let socket = TcpStream::connect(("127.0.0.1", port)).await?;
                self.serve(socket, true).await;
            }
            "disconnect" => {
                for mux in lock(&self.connections).drain(..) {
                    mux.close();
                }
            }
            other => {
                let handle = self.named(&name)?.handle.ok_or("not replicated")?;
                parts::run(other, &name, &handle, command).await?;
            }
        }
        Ok(())
    }

    fn insert(&self, name: &str, core: Core, policy: Policy, command: &Value) {
        let upload = Arc::new(AtomicBool::new(command["upload"].as_bool().unwrap_or(true)));
        let asked = Arc::clone(&upload);
        let policy = Policy { upload: Arc::new(move |_| asked.load(Ordering::SeqCst)), ..policy };
        let later = command["later"].as_bool().unwrap_or(false);
        let handle = (!later).then(|| self.replicator.add(core.clone(), policy));
        let line = json!({"event": "core", "name": name, "key": hex(core.key()),
            "length": core.length()});
        lock(&self.cores).insert(name.to_owned(), Named { core, handle, upload });
        print(line);
    }

    fn named(&self, name: &str) -> Result<Named, Failure> {
        Ok(lock(&self.cores).get(name).cloned().ok_or("no core of that name")?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn print(line: Value) {
    println!("{line}");
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key(text: &str) -> Result<Hash, Failure> {
    let byte = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2).unwrap_or("?"), 16);
    let bytes: Result<Vec<u8>, _> = (0..32).map(byte).collect();
    Ok(Hash::try_from(&bytes?[..])?)
}
