//! Catalogs and transfers of whole servers: real databases, real replication, encrypted connections in
//! memory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod catalog;
mod forks;
mod moves;
mod sharing;
mod support;
mod transfer;
mod wire;
