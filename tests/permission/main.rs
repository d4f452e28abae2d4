//! Who may read what: attacks on whole nodes by peers that speak the wire themselves, and random programs of all
//! that an owner and peers can do, compared with a model of a few lines.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod attacks;
mod claims;
mod friend;
mod model;
mod space;
