//! What is common to the subcommands that answer every command with one line, in order: reading the fields of
//! commands, and hexadecimal bytes.

use std::io::BufRead;

use alex_p2p::crypto::Hash;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Answer = Result<Value, Failure>;

/// Answers every line of stdin until it ends; what fails, by `{"event":"failed","error"}`.
pub fn answer_all(
    runtime: &Runtime,
    mut run: impl AsyncFnMut(&Value) -> Answer,
) -> Result<(), Failure> {
    for line in std::io::stdin().lock().lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let answer = runtime.block_on(run(&command));
        let failed = |error: Failure| json!({"event": "failed", "error": error.to_string()});
        println!("{}", answer.unwrap_or_else(failed));
    }
    Ok(())
}

pub fn text<'a>(command: &'a Value, field: &str) -> Result<&'a str, Failure> {
    command[field].as_str().ok_or_else(|| format!("{field} is missing").into())
}

pub fn number(command: &Value, field: &str) -> Result<u64, Failure> {
    command[field].as_u64().ok_or_else(|| format!("{field} is missing").into())
}

pub fn bytes(command: &Value, field: &str) -> Result<Vec<u8>, Failure> {
    unhex(text(command, field)?)
}

pub fn hash(command: &Value, field: &str) -> Result<Hash, Failure> {
    bytes(command, field)?.try_into().map_err(|_| format!("{field} is not 32 bytes").into())
}

/// The blocks of a command that appends.
pub fn blocks(command: &Value) -> Result<Vec<bytes::Bytes>, Failure> {
    let blocks = command["blocks"].as_array().ok_or("no blocks")?;
    let block = |block: &Value| Ok(unhex(block.as_str().ok_or("not text")?)?.into());
    blocks.iter().map(block).collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Result<Vec<u8>, Failure> {
    let byte = |at| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    (0..text.len()).step_by(2).map(byte).collect::<Option<_>>().ok_or("not hexadecimal".into())
}
