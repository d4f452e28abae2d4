//! `interop differential <dir>`: one log that is written here and one that is read here, both with the
//! same key and each in a database of its own, for a test that does the same with npm's hypercore.
//!
//! Prints `listening {writer, reader}`: a port where the written log is served, and one where the other
//! is fetched. Every command is answered by one line, in order; what fails, by
//! `{"event":"failed","error"}`. Bytes are hexadecimal.
//!
//! - `start {seed}`: both logs, empty, of this key pair → `state`
//! - `append {blocks, survives?}`, `truncate {length, fork?}`, `clear {start, end}`, `state` → `state` of the written log
//! - `reopen`, `reopen-reader`: closes it and opens it again → `state`
//! - `synced {fork, length, blocks}`: waits until the other log is there, and `blocks` are here → `state` with
//!   no other blocks
//! - `disconnect {reader, count}`: ends the connections of one of the logs, the `count`-th that it ever had
//!   among them → `done`
//! - `end`: closes both and removes what is stored → `done`

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use alex_p2p::crypto::{Hash, KeyPair, keyed_hash};
use alex_p2p::hypercore::replicator::{CoreHandle, Policy, Replicator};
use alex_p2p::hypercore::storage::Survives;
use alex_p2p::hypercore::{Core, CoreError, Manifest, OpenOptions, Storage};
use alex_p2p::protomux::{MuxOptions, Protomux};
use alex_p2p::secret_stream::connect_xx;
use alex_p2p::store::{CoreStore, Database};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::command::{Answer, Failure, answer_all, blocks, hash, hex, number, text};

/// How long the reader may take to get what the writer has.
const PATIENCE: Duration = Duration::from_secs(20);

/// A place for one log, and who is connected to it.
struct Side {
    storage: CoreStore,
    replicator: Replicator,
    connections: watch::Receiver<Vec<Protomux>>,
    port: u16,
    log: Option<(Core, CoreHandle)>,
}

impl Side {
    async fn new(dir: &Path, name: &str) -> Result<Self, Failure> {
        let storage = CoreStore::new(Database::open(&dir.join(name))?);
        let replicator = Replicator::new();
        let (accepted, connections) = watch::channel(Vec::new());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(accept(listener, replicator.clone(), accepted));
        Ok(Self { storage, replicator, connections, port, log: None })
    }

    fn open(&mut self, key: Hash, writer: Option<KeyPair>) -> Result<Core, Failure> {
        let policy = if writer.is_some() { Policy::serve() } else { Policy::fetch() };
        let manifest = writer.as_ref().map(|pair| Manifest::single(pair.public_key()));
        let options = OpenOptions { manifest, writer, ..OpenOptions::default() };
        let core = Core::open(&self.storage, key, options)?;
        let handle = self.replicator.add(core.clone(), policy);
        self.log = Some((core.clone(), handle));
        Ok(core)
    }

    async fn close(&mut self) -> Result<(), Failure> {
        if let Some((core, handle)) = self.log.take() {
            handle.close();
            core.close().await?;
        }
        Ok(())
    }

    fn core(&self) -> Result<&Core, Failure> {
        self.log.as_ref().map(|(core, _)| core).ok_or_else(|| "not started".into())
    }

    async fn disconnect(&mut self, count: usize) -> Result<(), Failure> {
        let all = self.connections.wait_for(|all| all.len() >= count).await?;
        all.iter().for_each(Protomux::close);
        Ok(())
    }
}

async fn accept(
    listener: TcpListener,
    replicator: Replicator,
    accepted: watch::Sender<Vec<Protomux>>,
) {
    let keys = KeyPair::generate();
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let Ok(stream) = connect_xx(socket, false, &keys).await else { continue };
        let mux = Protomux::new(stream, MuxOptions { paused: true });
        replicator.attach(&mux);
        accepted.send_modify(|all| all.push(mux.clone()));
        mux.start();
    }
}

struct Program {
    writer: Side,
    reader: Side,
    pair: Option<(Hash, KeyPair)>,
}

/// Runs the program until stdin ends.
pub fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), Failure> {
    let dir = arguments.next().ok_or("no directory")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut program = runtime.block_on(async {
        let (writer, reader) =
            (Side::new(dir.as_ref(), "here.db").await?, Side::new(dir.as_ref(), "there.db").await?);
        Ok::<_, Failure>(Program { writer, reader, pair: None })
    })?;
    let (writer, reader) = (program.writer.port, program.reader.port);
    println!("{}", json!({"event": "listening", "writer": writer, "reader": reader}));
    answer_all(&runtime, async |command: &Value| program.run(command).await)
}

impl Program {
    async fn run(&mut self, command: &Value) -> Answer {
        match text(command, "command")? {
            "start" => {
                let pair = KeyPair::from_seed(&hash(command, "seed")?);
                let key = Manifest::single(pair.public_key()).key();
                self.pair = Some((key, pair.clone()));
                self.reader.open(key, None)?;
                state(&self.writer.open(key, Some(pair))?)
            }
            "append" => {
                let core = self.writer.core()?;
                let survives = match command["survives"].as_str() {
                    Some("process") => Survives::Process,
                    _ => Survives::Power,
                };
                core.append_surviving(blocks(command)?, survives).await?;
                state(core)
            }
            "truncate" => {
                let core = self.writer.core()?;
                core.truncate(number(command, "length")?, command["fork"].as_u64()).await?;
                state(core)
            }
            "clear" => {
                let (start, end) = (number(command, "start")?, number(command, "end")?);
                let (core, handle) = self.writer.log.as_ref().ok_or("not started")?;
                handle.clear(start..end).await?;
                state(core)
            }
            "state" => state(self.writer.core()?),
            "reopen" => {
                let (key, pair) = self.pair.clone().ok_or("not started")?;
                self.writer.close().await?;
                state(&self.writer.open(key, Some(pair))?)
            }
            "reopen-reader" => {
                let (key, _) = self.pair.clone().ok_or("not started")?;
                self.reader.close().await?;
                state(&self.reader.open(key, None)?)
            }
            "synced" => {
                let core = self.reader.core()?;
                let blocks = wanted(command)?;
                let (fork, length) = (number(command, "fork")?, number(command, "length")?);
                let mut changes = core.subscribe();
                let there = async {
                    loop {
                        // A copy: the core is not to be asked while one looks at its change.
                        let now = *changes.borrow_and_update();
                        if (now.fork, now.length) == (fork, length)
                            && blocks.iter().all(|index| core.has(*index))
                        {
                            return Ok::<_, Failure>(());
                        }
                        changes.changed().await?;
                    }
                };
                match tokio::time::timeout(PATIENCE, there).await {
                    Ok(there) => there?,
                    Err(_) => return Err(format!("the reader stays {:?}", core.state()).into()),
                }
                state_of(core, Some(&blocks))
            }
            "disconnect" => {
                let is_reader = command["reader"] == true;
                let side = if is_reader { &mut self.reader } else { &mut self.writer };
                side.disconnect(number(command, "count")? as usize).await?;
                Ok(json!({"event": "done"}))
            }
            "end" => {
                for side in [&mut self.writer, &mut self.reader] {
                    side.close().await?;
                    if let Some((key, _)) = &self.pair {
                        side.storage.remove(&alex_p2p::crypto::discovery_key(key)).await?;
                    }
                }
                Ok(json!({"event": "done"}))
            }
            other => Err(format!("unknown command {other}").into()),
        }
    }
}

/// The indexes in `blocks` of a command.
fn wanted(command: &Value) -> Result<BTreeSet<u64>, Failure> {
    Ok(serde_json::from_value(command["blocks"].clone())?)
}

fn state(core: &Core) -> Answer {
    state_of(core, None)
}

/// All there is to compare of a log. `blocks` are the indexes of those that are here (and among `only`),
/// and `digest` is over their bytes.
fn state_of(core: &Core, only: Option<&BTreeSet<u64>>) -> Answer {
    let now = core.state();
    let (mut blocks, mut bytes) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(index) = core.next_present(at) {
        at = index + 1;
        if only.is_none_or(|only| only.contains(&index)) {
            bytes.extend_from_slice(&core.get(index)?.ok_or(CoreError::MissingBlock(index))?);
            blocks.push(index);
        }
    }
    Ok(json!({
        "event": "state",
        "key": hex(core.key()),
        "length": now.length,
        "byteLength": now.byte_length,
        "fork": now.fork,
        "treeHash": hex(&core.tree_hash()),
        "signature": core.signature().map(|signature| hex(&signature)),
        "blocks": blocks,
        "digest": hex(&keyed_hash(&[0; 32], &[&bytes])),
    }))
}
