//! `interop core`: logs, their proofs and their storage, without a network.
//!
//! Every command is answered by one line, in order; what fails, by `{"event":"failed","error"}`.
//! Bytes are hexadecimal.
//!
//! - `create {core, seed, manifest?, compat?, dir?}`, `open {core, key, seed?, dir?, file?}`: a core in
//!   memory, in a database in `dir`, or in a file → `state`
//! - `static {core, path}`: the core of a file → `state`
//! - `append {core, blocks}` → `state`; `state {core}` → `state`
//! - `prove {core, request}` → `proof {data | null, error?}`; both are messages of the wire
//! - `apply {core, data}` → `applied {upgraded, block, manifest}` or `refused {error, violation}`
//! - `contradicts {core, data}` → `contradicts {value}`
//! - `get {core, index}` → `block {bytes | null}`; `missing {core, index}` → `missing {nodes}`
//! - `seek {core, bytes}` → `position {index, offset}`; `verify {core}` → `verified {good, bad, whole}`
//! - `flush {core}`, `close {core}` → `done`
//! - `manifest {bytes}` → `manifest {key, bytes}`
//! - `write {core, count, size}`: appends one after the other, printing `state` for each; for tests
//!   that kill this program
//! - `bench {dir, entries}` → `rates`: measurements of appending and of taking over proofs

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use alex_p2p::crypto::KeyPair;
use alex_p2p::encoding::{Reader, Writer};
use alex_p2p::hypercore::messages::{RequestNode, RequestUpgrade};
use alex_p2p::hypercore::{
    ApplyError, BLOCK_SIZE, BlockSource, Core, CoreError, CreateOptions, Data, FileAccess,
    Manifest, MemoryStorage, OpenOptions, Position, Request, StaticTree, Storage,
};
use alex_p2p::store::{CoreStore, Database};
use bytes::Bytes;
use serde_json::{Value, json};

use super::command::{Answer, Failure, answer_all, blocks, bytes, hash, hex, number, text};

#[derive(Default)]
struct Program {
    memory: MemoryStorage,
    databases: HashMap<String, CoreStore>,
    cores: HashMap<String, Core>,
}

/// Runs the program until stdin ends.
pub fn run() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut program = Program::default();
    answer_all(&runtime, async |command: &Value| program.run(command).await)
}

impl Program {
    async fn run(&mut self, command: &Value) -> Answer {
        match text(command, "command")? {
            "create" | "open" | "static" => {
                let core = self.make(command).await?;
                self.cores.insert(text(command, "core")?.to_owned(), core.clone());
                Ok(state(&core))
            }
            "manifest" => {
                let manifest = Manifest::decode(&bytes(command, "bytes")?)?;
                let encoded = hex(&manifest.encode());
                Ok(json!({"event": "manifest", "key": hex(&manifest.key()), "bytes": encoded}))
            }
            "bench" => bench(Path::new(text(command, "dir")?), number(command, "entries")?).await,
            name => self.with_core(name, command).await,
        }
    }

    async fn make(&mut self, command: &Value) -> Result<Core, Failure> {
        let pair = match command["seed"].as_str() {
            Some(_) => Some(KeyPair::from_seed(&hash(command, "seed")?)),
            None => None,
        };
        let manifest = match command["manifest"].as_str() {
            Some(_) => Some(Manifest::decode(&bytes(command, "manifest")?)?),
            None => None,
        };
        let storage: &dyn Storage = match command["dir"].as_str() {
            None => &self.memory,
            Some(dir) => {
                if !self.databases.contains_key(dir) {
                    let database = Database::open(&Path::new(dir).join("p2p.db"))?;
                    self.databases.insert(dir.to_owned(), CoreStore::new(database));
                }
                self.databases.get(dir).ok_or("no database")?
            }
        };
        Ok(match text(command, "command")? {
            "static" => {
                let tree = StaticTree::build(Path::new(text(command, "path")?), None).await?;
                Core::open_static(storage, &tree).await?
            }
            "open" => {
                let blocks = match command["file"].as_str() {
                    None => BlockSource::Storage,
                    Some(path) => BlockSource::File {
                        path: path.into(),
                        block_size: BLOCK_SIZE,
                        access: FileAccess::Write,
                    },
                };
                let options = OpenOptions { manifest, writer: pair, blocks };
                Core::open(storage, hash(command, "key")?, options)?
            }
            _ => {
                let single = pair.as_ref().map(|pair| Manifest::single(pair.public_key()));
                let manifest = manifest.or(single).ok_or("no manifest")?;
                let compat = command["compat"] == json!(true);
                Core::create(storage, CreateOptions { manifest, writer: pair, compat })?
            }
        })
    }

    async fn with_core(&mut self, name: &str, command: &Value) -> Answer {
        let core = self.cores.get(text(command, "core")?).ok_or("no such core")?.clone();
        Ok(match name {
            "state" => state(&core),
            "append" => {
                core.append(blocks(command)?).await?;
                state(&core)
            }
            "write" => {
                let block = Bytes::from(vec![b'w'; number(command, "size")? as usize]);
                for _ in 0..number(command, "count")? {
                    core.append(vec![block.clone(); 3]).await?;
                    println!("{}", state(&core));
                }
                json!({"event": "done"})
            }
            "prove" => {
                let request = bytes(command, "request")?;
                let request = Request::decode(&mut Reader::new(&request))?;
                match core.prove(&request) {
                    Ok(data) => json!({"event": "proof", "data": data.map(|data| encoded(&data))}),
                    Err(error @ CoreError::InvalidRequest(_)) => {
                        json!({"event": "proof", "data": null, "error": error.to_string()})
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            "apply" => match decoded(command).and_then(|data| Ok(core.apply(&data)?)) {
                Ok(applied) => json!({
                    "event": "applied",
                    "upgraded": applied.upgraded,
                    "block": applied.block,
                    "manifest": applied.manifest,
                }),
                Err(error) => {
                    let violation =
                        error.downcast_ref::<ApplyError>().is_none_or(ApplyError::is_violation);
                    let error = error.to_string();
                    json!({"event": "refused", "error": error, "violation": violation})
                }
            },
            "contradicts" => {
                let value = core.contradicts(&decoded(command)?)?;
                json!({"event": "contradicts", "value": value})
            }
            "get" => {
                let block = core.get(number(command, "index")?)?;
                json!({"event": "block", "bytes": block.map(|block| hex(&block))})
            }
            "missing" => {
                let nodes = core.missing_nodes(number(command, "index")?)?;
                json!({"event": "missing", "nodes": nodes})
            }
            "seek" => match core.seek(number(command, "bytes")?)? {
                Position::Block { index, offset } => {
                    json!({"event": "position", "index": index, "offset": offset})
                }
                Position::Between { .. } | Position::End => {
                    json!({"event": "position", "index": null})
                }
            },
            "verify" => {
                let found = core.verify(None).await?;
                let (good, whole) = (found.good, found.whole);
                json!({"event": "verified", "good": good, "bad": found.bad, "whole": whole})
            }
            "flush" => {
                core.flush().await?;
                json!({"event": "done"})
            }
            "close" => {
                core.close().await?;
                json!({"event": "done"})
            }
            other => return Err(format!("unknown command {other}").into()),
        })
    }
}

fn state(core: &Core) -> Value {
    let now = core.state();
    let roots: Vec<Value> = core
        .roots()
        .iter()
        .map(|node| json!({"index": node.index, "size": node.size, "hash": hex(&node.hash)}))
        .collect();
    json!({
        "event": "state",
        "key": hex(core.key()),
        "discoveryKey": hex(core.discovery_key()),
        "length": now.length,
        "byteLength": now.byte_length,
        "contiguousLength": now.contiguous_length,
        "fork": now.fork,
        "treeHash": hex(&core.tree_hash()),
        "roots": roots,
        "manifest": core.manifest().map(|manifest| hex(&manifest.encode())),
        "signature": core.signature().map(|signature| hex(&signature)),
    })
}

/// Appends `entries` of about 300 bytes at once, and takes them over block by block.
async fn bench(dir: &Path, entries: u64) -> Answer {
    let pair = KeyPair::generate();
    let here = CoreStore::new(Database::open(&dir.join("here.db"))?);
    let manifest = Manifest::single(pair.public_key());
    let options = CreateOptions { manifest, writer: Some(pair), compat: false };
    let source = Core::create(&here, options)?;
    let entry = |index| Bytes::from(format!("{index:0300}"));
    let blocks = (0..entries).map(entry).collect();
    let rate = |start: Instant| (entries as f64 / start.elapsed().as_secs_f64()) as u64;
    let start = Instant::now();
    source.append(blocks).await?;
    let append = rate(start);
    let start = Instant::now();
    let read = source.range(0..entries, usize::MAX)?.len() as u64;
    let range = rate(start);

    let there = CoreStore::new(Database::open(&dir.join("there.db"))?);
    let copy = Core::open(&there, *source.key(), OpenOptions::default())?;
    let upgrade = Some(RequestUpgrade { start: 0, length: entries });
    let request = Request { id: 1, manifest: true, upgrade, ..Request::default() };
    copy.apply(&source.prove(&request)?.ok_or("no proof")?)?;
    let (mut proving, mut applying) = (0.0, 0.0);
    for first in (0..entries).step_by(64) {
        let start = Instant::now();
        let mut proofs = Vec::new();
        for index in first..entries.min(first + 64) {
            let nodes = copy.missing_nodes(2 * index)?;
            let block = Some(RequestNode { index, nodes });
            let request = Request { id: 1, block, ..Request::default() };
            proofs.push(source.prove(&request)?.ok_or("no proof")?);
        }
        proving += start.elapsed().as_secs_f64();
        let start = Instant::now();
        for proof in &proofs {
            if copy.apply(proof)?.full {
                copy.room().await?;
            }
        }
        applying += start.elapsed().as_secs_f64();
    }
    let start = Instant::now();
    copy.flush().await?;
    applying += start.elapsed().as_secs_f64();
    Ok(json!({
        "event": "rates",
        "read": read,
        "append": append,
        "range": range,
        "prove": (entries as f64 / proving) as u64,
        "ingest": (entries as f64 / applying) as u64,
    }))
}

fn encoded(data: &Data) -> String {
    let mut writer = Writer::new();
    data.encode(&mut writer);
    hex(writer.as_slice())
}

fn decoded(command: &Value) -> Result<Data, Failure> {
    Ok(Data::decode(&bytes(command, "data")?.into())?)
}
