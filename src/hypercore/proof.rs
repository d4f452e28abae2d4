//! Proofs: what a peer needs to believe a block, a hash, a position or a longer log.
//!
//! The messages themselves are in [`super::messages`]: a [`super::Request`] is answered by a
//! [`super::Data`].
