//! Commands of `interop replicate` about parts of a core; each is answered by `part {name, …}`.
//!
//! - `get {name, index}` → the block's `bytes`, hexadecimal
//! - `range {name, start, end}` → `blocks`, how many are here once those are
//! - `seek {name, offset}` → `index` of the block and `offset` into it
//! - `clear {name, start, end}` → `cleared`

use alex_p2p::hypercore::replicator::CoreHandle;
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs one command.
pub async fn run(
    command: &str,
    name: &str,
    handle: &CoreHandle,
    fields: &Value,
) -> Result<(), Failure> {
    let number = |field: &str| fields[field].as_u64().ok_or(format!("{field} is missing"));
    let answer = match command {
        "get" => {
            let block = handle.get(number("index")?).await?;
            let bytes: String = block.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({"event": "part", "name": name, "bytes": bytes})
        }
        "range" => {
            handle.download(number("start")?..number("end")?).done().await?;
            json!({"event": "part", "name": name, "blocks": handle.core().state().blocks})
        }
        "seek" => {
            let (index, offset) = handle.seek(number("offset")?).await?;
            json!({"event": "part", "name": name, "index": index, "offset": offset})
        }
        "clear" => {
            let cleared = handle.clear(number("start")?..number("end")?).await?;
            json!({"event": "part", "name": name, "cleared": cleared})
        }
        other => return Err(format!("unknown command {other}").into()),
    };
    println!("{answer}");
    Ok(())
}
