//! The encrypted stream: Noise messages that somebody made up, raw bytes where frames are expected, and
//! frames of the other end that were changed on their way. A receiver gets what was sent, in order, and
//! nothing else, and after the first thing that is wrong nothing more.

use std::time::Duration;

use alex_p2p::crypto::KeyPair;
use alex_p2p::secret_stream::{Handshake, Pattern, SecretStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::session::sessions;

/// Room on the raw stream: all that one input leads to.
const ROOM: usize = 1 << 20;

/// The first byte is what is tried, the rest its input.
pub fn run(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which & 3 {
        0 => noise(which >> 2, bytes),
        1 => block_on(raw_bytes(bytes)),
        _ => block_on(frames(which & 4 != 0, bytes)),
    }
}

fn block_on(future: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap().block_on(future);
}

/// A message where a handshake's first, second or third is expected: no stranger can write one that counts.
fn noise(which: u8, bytes: &[u8]) {
    let (ours, theirs) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
    let pattern = if which & 1 == 0 { Pattern::IK } else { Pattern::XX };
    let initiator = which & 2 != 0;
    let key = theirs.public_key();
    let known = (initiator && pattern == Pattern::IK).then_some(&key);
    let mut handshake = Handshake::new(pattern, initiator, &ours, known, b"fuzz").unwrap();
    if initiator {
        handshake.write(b"payload").unwrap();
    }
    if handshake.read(bytes).is_err() {
        assert!(handshake.read(bytes).is_err() && handshake.write(&[]).is_err());
        assert!(handshake.finish().is_err());
        return;
    }
    // Only the first message of XX says nothing that a stranger cannot say.
    assert!(pattern == Pattern::XX && !initiator, "a stranger's message was taken");
    let _ = handshake.write(&[]);
    assert!(handshake.read(bytes).is_err() && handshake.finish().is_err());
}

/// Bytes of a stranger instead of a stream.
async fn raw_bytes(bytes: &[u8]) {
    let (mut foe, raw) = duplex(ROOM);
    let (_sender, mut receiver) = SecretStream::new(raw, sessions()[0].clone()).split();
    foe.write_all(bytes).await.unwrap();
    drop(foe);
    assert!(receiver.recv().await.is_err(), "a stranger's bytes were taken");
    assert!(receiver.recv().await.is_err());
}

/// The messages that the input says, with changes where it says.
async fn frames(cut: bool, bytes: &[u8]) {
    let (near, raw) = duplex(ROOM);
    let (mut sender, _receiver) = SecretStream::new(raw, sessions()[1].clone()).split();
    let Some(([at, change, pieces], program)) = bytes.split_first_chunk() else { return };
    let mut sent: Vec<Vec<u8>> = Vec::new();
    for message in program.chunks(usize::from(*pieces) + 1).take(64) {
        // Some are long: the receiver cuts these out instead of copying.
        let times = if message[0] & 63 == 63 { 400 } else { 1 };
        sent.push(message.repeat(times));
        sender.feed(&sent[sent.len() - 1]).unwrap();
    }
    sender.flush().await.unwrap();
    drop((sender, _receiver));
    let mut wire = Vec::new();
    let mut near = near;
    near.read_to_end(&mut wire).await.unwrap();

    let at = (usize::from(*at) * 41) % wire.len();
    let is_whole = *change == 0;
    if cut && !is_whole {
        wire.truncate(at);
    } else {
        wire[at] ^= change;
    }
    let (mut far, raw) = duplex(ROOM);
    let (_sender, mut receiver) = SecretStream::new(raw, sessions()[0].clone()).split();
    far.write_all(&wire).await.unwrap();
    drop(far);
    let mut received = 0;
    let end = loop {
        match tokio::time::timeout(Duration::from_secs(60), receiver.recv()).await.unwrap() {
            Ok(Some(message)) => {
                assert_eq!(message[..], sent[received][..], "another message");
                received += 1;
            }
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    if is_whole {
        assert!(end && received == sent.len());
    }
    // What starts the cipher is proved by the first message.
    assert!(cut || is_whole || !end || sent.is_empty(), "a changed stream ended well");
    // What was cut off between two messages looks like an end: the layers above have one of their own.
    assert!(receiver.recv().await.is_ok_and(|message| message.is_none()) == end);
}
