//! `Testnet`: a private DHT in the process.

use std::sync::Arc;

use napi::Env;
use napi::bindgen_prelude::Unknown;
use napi_derive::napi;

use super::argument::optional_count;
use super::call::{Promised, call};
use super::error::invalid;
use super::json::UNDEFINED;
use super::life::Life;
use crate::error::Error;
use crate::hyperdht;

/// How many nodes a testnet has at most.
const LARGEST: u64 = 64;

/// A private DHT on 127.0.0.1, inside this process: for tests and for trying things out without the
/// public network. Not for servers.
#[napi]
pub struct Testnet {
    testnet: Arc<hyperdht::Testnet>,
}

#[napi]
impl Testnet {
    /// Starts a network of `size` nodes (3 unless told, 64 at most).
    #[napi(
        ts_args_type = "size?: number, options?: WaitOptions",
        ts_return_type = "Promise<Testnet>"
    )]
    pub fn start<'env>(
        env: &'env Env,
        size: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        call(env, &Life::default(), options, |_| {
            let size = optional_count(size, "size")?.unwrap_or(3);
            if !(1..=LARGEST).contains(&size) {
                return Err(invalid(format!("size must be from 1 to {LARGEST}")));
            }
            Ok(async move {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let testnet = hyperdht::Testnet::start(size).await.map_err(Error::from)?;
                Ok(Self { testnet: Arc::new(testnet) })
            })
        })
    }

    /// What {@link P2PNode.open} takes as `bootstrap` to be in this network.
    #[napi(getter)]
    pub fn bootstrap(&self) -> Vec<String> {
        self.testnet.bootstrap().iter().map(ToString::to_string).collect()
    }

    /// Stops all nodes. Calling it again does nothing.
    #[napi(ts_args_type = "", ts_return_type = "Promise<void>")]
    pub fn close<'env>(&self, env: &'env Env) -> Promised<'env> {
        let testnet = Arc::clone(&self.testnet);
        call(env, &Life::default(), None, |_| {
            Ok(async move {
                testnet.close().await;
                Ok(UNDEFINED)
            })
        })
    }

    /// As `close()`: for `await using`.
    #[napi(well_known_symbol = "asyncDispose", ts_return_type = "Promise<void>")]
    pub fn async_dispose<'env>(&self, env: &'env Env) -> Promised<'env> {
        self.close(env)
    }
}
