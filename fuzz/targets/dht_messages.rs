//! Every decoder of the DHT: what it takes, it takes again as we would write it; and the sealed payloads
//! of hole punches, which open only unchanged.


use alex_p2p::hyperdht::fuzzing::{Decoder, open, seal};

use crate::session::sessions;

/// The first byte is the decoder, the rest its input.
pub fn run(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    let which = usize::from(*which);
    match Decoder::ALL.get(which) {
        Some(decoder) => decode(*decoder, bytes),
        None if which < 16 => sealed(bytes),
        None => Decoder::ALL.iter().for_each(|decoder| decode(*decoder, data)),
    }
}

fn decode(decoder: Decoder, bytes: &[u8]) {
    let Some(written) = decoder.again(bytes) else { return };
    // A payload of another version is not read, so we would not write it.
    if decoder == Decoder::NoisePayload && bytes[0] != 1 {
        return;
    }
    let read = decoder.again(&written);
    assert_eq!(read.as_ref(), Some(&written), "{decoder:?}: we do not read what we write");
    // What numbers take is all that our writing can differ in.
    assert!(written.len() <= bytes.len() + 16, "{decoder:?} made more of {bytes:?}");
}

/// Two bytes say what is changed, the rest is a payload or a sealed one.
fn sealed(bytes: &[u8]) {
    let [ours, theirs] = sessions();
    assert_eq!(open(ours, bytes), None, "nobody sealed this");
    let Some(([at, change], payload)) = bytes.split_first_chunk() else { return };
    let Some(mut sealed) = seal(theirs, payload) else { return };
    let payload = Decoder::HolepunchPayload.again(payload);
    assert_eq!(open(ours, &sealed), payload);
    if *change != 0 {
        let at = usize::from(*at) % sealed.len();
        sealed[at] ^= change;
        assert_eq!(open(ours, &sealed), None);
        assert_eq!(open(ours, &sealed[..at]), None);
    }
}
