//! The messages of a multiplexed connection, to bytes and back (npm `protomux` `index.js`).
//!
//! A message starts with the sender's channel id and the message's type. Channel 0 is control:
//! `0,0` a batch, `0,1` open, `0,2` reject, `0,3` close. A batch is `id, (length, type, message)*`,
//! where a length of 0 means that another id follows; control messages in it lose their leading 0.

use bytes::Bytes;

use super::limits::{MAX_HANDSHAKE, MAX_ID, MAX_PROTOCOL};
use crate::encoding::{DecodeError, Reader, Writer};

/// Shorter parts of a batch are copied together.
const SMALL_PART: usize = 4096;

/// A message that is a smaller share of its frame than one in so many is copied out of it.
const SHARED_PARTS: usize = 8;

const BATCH: u64 = 0;
const OPEN: u64 = 1;
const REJECT: u64 = 2;
const CLOSE: u64 = 3;

/// One thing that the remote says. Channel ids are the remote's, except in `Reject`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    Open { remote: u64, protocol: String, id: Vec<u8>, handshake: Bytes },
    Reject { local: u64 },
    Close { remote: u64 },
    Message { remote: u64, kind: u64, data: Bytes },
}

/// Reads a received message item by item: one, or as many as a batch holds.
#[derive(Debug)]
pub(super) struct Items {
    frame: Bytes,
    /// Where the next item starts in the frame.
    at: usize,
    /// The channel of the batch's next messages; `None` outside a batch.
    batch: Option<u64>,
    done: bool,
}

impl Items {
    pub(super) fn new(frame: Bytes) -> Self {
        let done = frame.is_empty();
        Self { frame, at: 0, batch: None, done }
    }

    /// The next item. Unknown control messages are skipped.
    pub(super) fn next(&mut self) -> Result<Option<Item>, DecodeError> {
        if !self.done && self.at == 0 {
            let mut reader = Reader::new(&self.frame);
            let remote = reader.uint()?;
            let kind = reader.uint()?;
            if (remote, kind) != (0, BATCH) {
                self.done = true;
                return self.item(remote, kind, reader);
            }
            self.batch = Some(reader.uint()?);
            self.at = self.frame.len() - reader.remaining();
        }
        while let Some(remote) = self.batch.filter(|_| self.at < self.frame.len()) {
            let mut reader = Reader::new(&self.frame[self.at..]);
            let length = reader.uint()?;
            if length == 0 {
                self.batch = Some(reader.uint()?);
                self.at = self.frame.len() - reader.remaining();
                continue;
            }
            let length = usize::try_from(length).map_err(|_| DecodeError::Truncated)?;
            let mut message = Reader::new(reader.take(length)?);
            let at = self.frame.len() - reader.remaining();
            let kind = message.uint()?;
            let item = self.item(remote, kind, message)?;
            self.at = at;
            if item.is_some() {
                return Ok(item);
            }
        }
        self.done = true;
        Ok(None)
    }

    fn item(
        &self,
        remote: u64,
        kind: u64,
        mut reader: Reader<'_>,
    ) -> Result<Option<Item>, DecodeError> {
        if remote != 0 {
            let data = self.cut(reader.rest());
            return Ok(Some(Item::Message { remote, kind, data }));
        }
        Ok(Some(match kind {
            BATCH => return Err(DecodeError::Invalid("batch in a batch")),
            OPEN => {
                let remote = reader.uint()?;
                let protocol = reader.string()?;
                let id = reader.buffer()?;
                let handshake = reader.rest();
                at_most(protocol.len(), MAX_PROTOCOL)?;
                at_most(id.len(), MAX_ID)?;
                at_most(handshake.len(), MAX_HANDSHAKE)?;
                let handshake = Bytes::copy_from_slice(handshake);
                Item::Open { remote, protocol: protocol.to_owned(), id: id.to_vec(), handshake }
            }
            REJECT => Item::Reject { local: reader.uint()? },
            CLOSE => Item::Close { remote: reader.uint()? },
            _ => return Ok(None),
        }))
    }

    /// A part of the frame. Small parts of large frames are copied, so that a message that waits for
    /// its reader does not keep megabytes alive.
    fn cut(&self, part: &[u8]) -> Bytes {
        if part.len() < self.frame.len() / SHARED_PARTS {
            Bytes::copy_from_slice(part)
        } else {
            self.frame.slice_ref(part)
        }
    }
}

fn at_most(got: usize, limit: usize) -> Result<(), DecodeError> {
    if got > limit {
        return Err(DecodeError::TooLong { got: got as u64, limit: limit as u64 });
    }
    Ok(())
}

/// What opens a channel: our id for it, its name, and a handshake.
pub(super) fn open(local: u64, protocol: &str, id: &[u8], handshake: &[u8]) -> Bytes {
    let mut writer = Writer::with_capacity(32 + protocol.len() + id.len() + handshake.len());
    writer.uint(0).uint(OPEN).uint(local).string(protocol).buffer(id).raw(handshake);
    writer.into_vec().into()
}

/// What tells the remote that we do not have the channel it opened.
pub(super) fn reject(remote: u64) -> Bytes {
    let mut writer = Writer::with_capacity(16);
    writer.uint(0).uint(REJECT).uint(remote);
    writer.into_vec().into()
}

/// What closes our side of a channel.
pub(super) fn close(local: u64) -> Bytes {
    let mut writer = Writer::with_capacity(16);
    writer.uint(0).uint(CLOSE).uint(local);
    writer.into_vec().into()
}

/// What stands in front of a channel's message.
pub(super) fn message_head(local: u64, kind: u32) -> Bytes {
    let mut writer = Writer::with_capacity(16);
    writer.uint(local).uint(u64::from(kind));
    writer.into_vec().into()
}

/// A batch of one channel's messages, as parts to be sent one after the other. Small parts are put
/// together, large ones stay as they are.
pub(super) fn batch(local: u64, messages: &[(u32, Vec<Bytes>)]) -> Vec<Bytes> {
    let small = |part: &Bytes| part.len() < SMALL_PART;
    let size: usize = messages
        .iter()
        .flat_map(|(_, parts)| parts)
        .filter(|part| small(part))
        .map(Bytes::len)
        .sum();
    let mut all = Vec::with_capacity(2 * messages.len() + 1);
    let mut writer = Writer::with_capacity(32 + 10 * messages.len() + size);
    writer.uint(0).uint(BATCH).uint(local);
    for (kind, parts) in messages {
        let mut head = Writer::with_capacity(5);
        head.uint(u64::from(*kind));
        let length = head.len() + parts.iter().map(Bytes::len).sum::<usize>();
        writer.uint(length as u64).raw(head.as_slice());
        for part in parts {
            if small(part) {
                writer.raw(part);
            } else {
                all.push(std::mem::take(&mut writer).into_vec().into());
                all.push(part.clone());
            }
        }
    }
    if !writer.as_slice().is_empty() {
        all.push(writer.into_vec().into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items(frame: impl Into<Bytes>) -> Result<Vec<Item>, DecodeError> {
        let mut items = Items::new(frame.into());
        let mut out = Vec::new();
        while let Some(item) = items.next()? {
            out.push(item);
        }
        Ok(out)
    }

    fn message(remote: u64, kind: u64, data: &'static [u8]) -> Item {
        Item::Message { remote, kind, data: Bytes::from_static(data) }
    }

    #[test]
    fn what_is_written_reads_back() {
        let opened = Item::Open {
            remote: 300,
            protocol: "alex/p2p".into(),
            id: vec![7; 32],
            handshake: Bytes::from_static(b"hi"),
        };
        assert_eq!(items(open(300, "alex/p2p", &[7; 32], b"hi")), Ok(vec![opened]));
        assert_eq!(items(reject(5)), Ok(vec![Item::Reject { local: 5 }]));
        assert_eq!(items(close(6)), Ok(vec![Item::Close { remote: 6 }]));
        assert_eq!(items(&b"\x09\x02abc"[..]), Ok(vec![message(9, 2, b"abc")]));
        let large = Bytes::from(vec![7; SMALL_PART]);
        let parts = vec![Bytes::from_static(b"a"), large.clone(), Bytes::from_static(b"b")];
        let messages =
            [(0, vec![Bytes::new()]), (4, parts.clone()), (3, vec![Bytes::from_static(b"xyz")])];
        let wire = batch(9, &messages);
        assert!(
            wire.iter().any(|part| part.as_ptr() == large.as_ptr()),
            "large parts are not copied"
        );
        let joined = Item::Message { remote: 9, kind: 4, data: parts.concat().into() };
        let expected = vec![message(9, 0, b""), joined, message(9, 3, b"xyz")];
        assert_eq!(items(wire.concat()), Ok(expected));
    }

    #[test]
    fn a_batch_switches_channels_at_a_length_of_zero_and_carries_control_messages() {
        // channel 1: type 0 "a"; channel 0: close 1; channel 2: type 4 ""
        let wire: &[u8] = &[0, 0, 1, 2, 0, b'a', 0, 0, 2, 3, 1, 0, 2, 1, 4];
        let expected = vec![message(1, 0, b"a"), Item::Close { remote: 1 }, message(2, 4, b"")];
        assert_eq!(items(wire), Ok(expected));
    }

    #[test]
    fn what_is_too_long_or_nested_is_an_error_and_unknown_control_is_not() {
        assert!(items(&[0, 0, 1, 9, 0][..]).is_err());
        assert!(items(&[0, 0, 0, 2, 0, 0][..]).is_err());
        assert!(items(open(1, &"p".repeat(MAX_PROTOCOL + 1), &[], &[])).is_err());
        assert!(items(open(1, "p", &[0; MAX_ID + 1], &[])).is_err());
        assert!(items(open(1, "p", &[], &vec![0; MAX_HANDSHAKE + 1])).is_err());
        assert_eq!(items(&[0, 77, 1, 2, 3][..]), Ok(vec![]));
        assert_eq!(items(Bytes::new()), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = items(bytes.clone());
            let mut batch = vec![0, 0];
            batch.extend(bytes);
            let _ = items(batch);
        }
    }
}
