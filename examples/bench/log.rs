//! Appending to a log on disk.

use std::path::Path;
use std::time::Instant;

use alex_p2p::crypto::KeyPair;
use alex_p2p::hypercore::storage::Survives;
use alex_p2p::hypercore::{Core, CreateOptions, Manifest};
use alex_p2p::store::{CoreStore, Database};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Outcome, text};

/// Appends `blocks` to a new log in `directory`, `atOnce` of them at a time, each time waiting until they
/// survive the loss of `power` or the end of the process; gives the milliseconds.
pub async fn append(argument: &Value) -> Outcome {
    let blocks: Vec<String> = serde_json::from_value(argument["blocks"].clone())?;
    let at_once = argument["atOnce"].as_u64().ok_or("atOnce is missing")? as usize;
    let is_synced = argument["survives"] == "power";
    let survives = if is_synced { Survives::Power } else { Survives::Process };
    let database = Database::open(&Path::new(text(argument, "directory")?).join("p2p.db"))?;
    let writer = KeyPair::generate();
    let manifest = Manifest::single(writer.public_key());
    let options = CreateOptions { manifest, writer: Some(writer), compat: false };
    let core = Core::create(&CoreStore::new(database.clone()), options)?;
    let count = blocks.len() as u64;
    let mut blocks = blocks.into_iter().map(Bytes::from).peekable();
    let start = Instant::now();
    while blocks.peek().is_some() {
        core.append_surviving(blocks.by_ref().take(at_once).collect(), survives).await?;
    }
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    if core.length() != count {
        return Err(format!("{} of {count} entries are there", core.length()).into());
    }
    core.close().await?;
    database.close();
    Ok(json!(ms))
}
