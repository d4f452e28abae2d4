//! The messages of the protomux channel `alex/p2p`: JSON, at most 64 KiB each.
//!
//! The channel's open carries a [`Hello`] as its handshake. Kind 0 is [`Request`], 1 [`Reply`], 2
//! [`Cancel`], 3 [`Done`]. Unknown fields and kinds are ignored, so that versions can differ;
//! `docs/protocol.md` is the description for other implementations.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::crypto::PublicKey;
use crate::text;

/// The protomux protocol name.
pub const PROTOCOL: &str = "alex/p2p";
/// The version in the hello.
pub const VERSION: u64 = 1;
/// The longest message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// The longest id of a book, in bytes.
pub const MAX_BOOK_ID_BYTES: usize = 512;
/// The longest request id, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 64;
/// The longest nickname that is kept, in characters.
pub const MAX_NICKNAME_CHARS: usize = 64;
/// The longest reason that is kept, in characters.
pub const MAX_REASON_CHARS: usize = 300;
/// The most features that a hello may name.
const MAX_FEATURES: usize = 32;
/// The longest name of a feature, in bytes.
const MAX_FEATURE_BYTES: usize = 64;

/// Why a message was not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// More than 64 KiB.
    #[error("an alex/p2p message of {0} bytes exceeds the limit of 65536")]
    TooLong(usize),
    /// Not the JSON that its kind asks for.
    #[error("an alex/p2p message that is no valid {0}")]
    Invalid(&'static str),
}

/// Who a server is, in the handshake of the channel's open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The protocol version; 1 today.
    pub version: u64,
    /// What the server calls itself, cleaned.
    pub nickname: Option<String>,
    /// The key of its catalog feed's core; `None` when it shares no catalog.
    pub feed_key: Option<[u8; 32]>,
    /// Names of optional abilities.
    pub features: Vec<String>,
}

/// One message of the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Kind 0: asks for a book.
    Request(Request),
    /// Kind 1: answers a request, or says that an earlier answer changed.
    Reply(Reply),
    /// Kind 2: the asking side no longer wants the book.
    Cancel(Cancel),
    /// Kind 3: the asking side has the whole book, verified.
    Done(Done),
    /// A kind that this version does not know.
    Unknown(u32),
}

/// Asks for a book. Asking again with the same id is the same request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Chosen by the asking side, unique among its requests to this server; at most 64 bytes.
    pub id: String,
    /// The book's id in the server's catalog.
    pub book_id: String,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The book's core may be read now.
    Granted,
    /// Not yet, or not at the moment: another reply will follow.
    Pending,
    /// A person or a policy said no.
    Denied,
    /// The server does not have the book.
    Unavailable,
}

/// Answers a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The request's id.
    pub id: String,
    /// What became of it.
    pub status: Status,
    /// For a person, cleaned.
    pub reason: Option<String>,
    /// Which core holds the book; always there when granted.
    pub book: Option<BookCore>,
}

/// The static core that holds a book's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BookCore {
    /// The core's key: the hash of its manifest.
    pub key: [u8; 32],
    /// The merkle tree's hash over the whole book: the manifest's prologue.
    pub hash: [u8; 32],
    /// How many blocks.
    pub length: u64,
    /// How many bytes.
    pub byte_length: u64,
}

/// Withdraws a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The request's id.
    pub id: String,
}

/// Says that the book of a [`Request`] arrived whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The request's id.
    pub id: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HelloJson {
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nickname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    feed_key: Option<String>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReplyJson {
    id: String,
    status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    byte_length: Option<u64>,
}

impl Hello {
    /// The hello's JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        json(&HelloJson {
            version: self.version,
            nickname: self.nickname.clone(),
            feed_key: self.feed_key.map(|key| PublicKey::from_bytes(key).to_z32()),
            features: self.features.clone(),
        })
    }

    /// Reads a hello. Words are cleaned; a feed key that is none, and features beyond the bounds, are
    /// left out.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let hello: HelloJson = parse(bytes, "hello")?;
        if hello.version == 0 {
            return Err(MessageError::Invalid("hello"));
        }
        let nickname = hello.nickname.map(|name| text::clean(&name, MAX_NICKNAME_CHARS));
        let mut features = hello.features;
        features.retain(|feature| feature.len() <= MAX_FEATURE_BYTES);
        features.truncate(MAX_FEATURES);
        Ok(Self {
            version: hello.version,
            nickname: nickname.filter(|name| !name.is_empty()),
            feed_key: hello.feed_key.as_deref().and_then(key_bytes),
            features,
        })
    }
}

impl Message {
    /// The kind and the JSON.
    #[must_use]
    pub fn encode(&self) -> (u32, Vec<u8>) {
        match self {
            Self::Request(request) => (0, json(request)),
            Self::Reply(reply) => (1, json(&reply.to_json())),
            Self::Cancel(cancel) => (2, json(cancel)),
            Self::Done(done) => (3, json(done)),
            Self::Unknown(kind) => (*kind, Vec::new()),
        }
    }

    /// The request that it is about.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Request(Request { id, .. })
            | Self::Reply(Reply { id, .. })
            | Self::Cancel(Cancel { id })
            | Self::Done(Done { id }) => Some(id),
            Self::Unknown(_) => None,
        }
    }

    /// Reads a message.
    pub fn decode(kind: u32, bytes: &[u8]) -> Result<Self, MessageError> {
        Ok(match kind {
            0 => {
                let request: Request = parse(bytes, "request")?;
                if request.book_id.is_empty() || request.book_id.len() > MAX_BOOK_ID_BYTES {
                    return Err(MessageError::Invalid("request"));
                }
                check_id(&request.id)?;
                Self::Request(request)
            }
            1 => Self::Reply(Reply::from_json(parse(bytes, "reply")?)?),
            2 => {
                let cancel: Cancel = parse(bytes, "cancel")?;
                check_id(&cancel.id)?;
                Self::Cancel(cancel)
            }
            3 => {
                let done: Done = parse(bytes, "done")?;
                check_id(&done.id)?;
                Self::Done(done)
            }
            other => Self::Unknown(other),
        })
    }
}

impl Reply {
    fn to_json(&self) -> ReplyJson {
        ReplyJson {
            id: self.id.clone(),
            status: self.status,
            reason: self.reason.clone(),
            key: self.book.map(|book| PublicKey::from_bytes(book.key).to_z32()),
            hash: self.book.map(|book| hex(&book.hash)),
            length: self.book.map(|book| book.length),
            byte_length: self.book.map(|book| book.byte_length),
        }
    }

    fn from_json(json: ReplyJson) -> Result<Self, MessageError> {
        check_id(&json.id)?;
        let reason = json.reason.map(|reason| text::clean(&reason, MAX_REASON_CHARS));
        let book = match (json.key, json.hash, json.length, json.byte_length) {
            (Some(key), Some(hash), Some(length), Some(byte_length)) => Some(BookCore {
                key: key_bytes(&key).ok_or(MessageError::Invalid("reply"))?,
                hash: key_bytes(&hash).ok_or(MessageError::Invalid("reply"))?,
                length,
                byte_length,
            }),
            _ if json.status == Status::Granted => return Err(MessageError::Invalid("reply")),
            _ => None,
        };
        let reason = reason.filter(|reason| !reason.is_empty());
        Ok(Self { id: json.id, status: json.status, reason, book })
    }
}

fn check_id(id: &str) -> Result<(), MessageError> {
    if id.is_empty() || id.len() > MAX_REQUEST_ID_BYTES {
        return Err(MessageError::Invalid("id"));
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, MessageError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(MessageError::TooLong(bytes.len()));
    }
    serde_json::from_slice(&text::well_formed(bytes)).map_err(|_| MessageError::Invalid(what))
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Strings and integers only: serde_json cannot fail on them.
    serde_json::to_vec(value).unwrap_or_default()
}

/// 32 bytes as 52 z32 or 64 hexadecimal characters.
fn key_bytes(text: &str) -> Option<[u8; 32]> {
    match text.len() {
        52 => PublicKey::from_z32(text).map(|key| *key.as_bytes()),
        64 => {
            let mut bytes = [0; 32];
            for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                let digit = |c: u8| char::from(c).to_digit(16);
                *byte = (digit(*pair.first()?)? * 16 + digit(*pair.get(1)?)?) as u8;
            }
            Some(bytes)
        }
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn granted() -> Reply {
        let book = BookCore { key: [1; 32], hash: [0xab; 32], length: 2, byte_length: 70_000 };
        Reply { id: "r1".into(), status: Status::Granted, reason: None, book: Some(book) }
    }

    fn through(message: Message) -> Message {
        let (kind, bytes) = message.encode();
        Message::decode(kind, &bytes).unwrap()
    }

    #[test]
    fn every_message_reads_back() {
        for message in [
            Message::Request(Request { id: "1".into(), book_id: "gb-1".into() }),
            Message::Reply(granted()),
            Message::Reply(Reply {
                id: "1".into(),
                status: Status::Denied,
                reason: Some("no".into()),
                book: None,
            }),
            Message::Cancel(Cancel { id: "1".into() }),
            Message::Done(Done { id: "1".into() }),
        ] {
            assert_eq!(through(message.clone()), message);
        }
    }

    #[test]
    fn a_reply_is_written_as_the_protocol_says() {
        let (kind, bytes) = Message::Reply(granted()).encode();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(kind, 1);
        assert_eq!(json["status"], "granted");
        assert_eq!(json["byteLength"], 70_000);
        assert_eq!(json["hash"].as_str().unwrap(), "ab".repeat(32));
        assert_eq!(json["key"].as_str().unwrap().len(), 52);
        assert!(json.get("reason").is_none());
    }

    #[test]
    fn unknown_fields_and_kinds_are_ignored() {
        let request = Message::decode(0, br#"{"id":"1","bookId":"b","priority":7}"#).unwrap();
        assert_eq!(request, Message::Request(Request { id: "1".into(), book_id: "b".into() }));
        assert_eq!(Message::decode(77, b"\xff\x00"), Ok(Message::Unknown(77)));
    }

    #[test]
    fn a_grant_without_a_core_is_refused() {
        assert!(Message::decode(1, br#"{"id":"1","status":"granted"}"#).is_err());
        assert!(Message::decode(1, br#"{"id":"1","status":"pending"}"#).is_ok());
        assert!(Message::decode(1, br#"{"id":"1","status":"maybe"}"#).is_err());
    }

    #[test]
    fn long_messages_and_ids_are_refused() {
        let long = format!(r#"{{"id":"1","bookId":"{}"}}"#, "x".repeat(MAX_MESSAGE_BYTES));
        assert!(matches!(Message::decode(0, long.as_bytes()), Err(MessageError::TooLong(_))));
        let id = format!(r#"{{"id":"{}"}}"#, "x".repeat(65));
        assert!(Message::decode(2, id.as_bytes()).is_err());
    }

    #[test]
    fn a_hello_is_cleaned_and_its_key_may_be_z32_or_hex() {
        let hex_key = "07".repeat(32);
        let json = format!(
            "{{\"version\":1,\"nickname\":\"A\\u001b\\u202e lice\",\"feedKey\":\"{hex_key}\",\"more\":[]}}"
        );
        let hello = Hello::decode(json.as_bytes()).unwrap();
        assert_eq!(hello.nickname.as_deref(), Some("A lice"));
        assert_eq!(hello.feed_key, Some([7; 32]));
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        assert!(Hello::decode(b"{}").is_err());
        assert!(Hello::decode(b"").is_err());
        assert!(Hello::decode(br#"{"version":1,"feedKey":"short"}"#).unwrap().feed_key.is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(kind in 0u32..6, bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = Message::decode(kind, &bytes);
            let _ = Hello::decode(&bytes);
        }

        #[test]
        fn any_json_string_survives(id in ".{1,16}", book in ".{1,100}") {
            prop_assume!(id.len() <= 64);
            let message = Message::Request(Request { id, book_id: book });
            prop_assert_eq!(through(message.clone()), message);
        }
    }
}
