//! A handshake that was made once.

use std::sync::OnceLock;

use alex_p2p::crypto::KeyPair;
use alex_p2p::secret_stream::{Handshake, Pattern, Session};

/// Both ends of one handshake.
pub fn sessions() -> &'static [Session; 2] {
    static SESSIONS: OnceLock<[Session; 2]> = OnceLock::new();
    SESSIONS.get_or_init(|| {
        let (ours, theirs) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
        let key = theirs.public_key();
        let mut client = Handshake::new(Pattern::IK, true, &ours, Some(&key), &[]).unwrap();
        let mut server = Handshake::new(Pattern::IK, false, &theirs, None, &[]).unwrap();
        server.read(&client.write(&[]).unwrap()).unwrap();
        client.read(&server.write(&[]).unwrap()).unwrap();
        [client.finish().unwrap(), server.finish().unwrap()]
    })
}
