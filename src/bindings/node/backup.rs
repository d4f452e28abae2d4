//! Backups of a node, and nodes made from them.

use std::sync::Arc;

use napi::Env;
use napi::Status;
use napi::bindgen_prelude::{Function, Object, Unknown, ValueType};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use serde::Serialize;

use super::argument::{
    is_missing, optional_boolean, optional_string, path as path_of, property, type_of, wrong,
};
use super::call::{Promised, call};
use super::error::internal;
use super::json::Json;
use super::life::Life;
use super::p2p_node::P2PNode;
use crate::error::Result;
use crate::hypercore::static_core::Progress;
use crate::node::{BackupOptions, Node};

#[napi]
impl P2PNode {
    /// Copies peers, catalogs and transfers as they are at one moment into a new file, readable by its
    /// owner only, while the node goes on. The file appears only when it is whole and synced. Books are
    /// not in it; the identity is if there is a passphrase, encrypted. Nobody can change it without being
    /// noticed who has neither the passphrase nor `keypair.json`. Rejects with `ERR_INVALID_ARGUMENT` when the file exists or the passphrase has less than 8 characters,
    /// `ERR_DISK_FULL`, `ERR_IO`. Aborted, it leaves nothing.
    #[napi(
        ts_args_type = "path: string, options?: BackupOptions",
        ts_return_type = "Promise<Backup>"
    )]
    pub fn backup<'env>(
        &self,
        env: &'env Env,
        path: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let open = Arc::clone(self.opened());
        call(env, open.clone().life(), options, |options| {
            let path = path_of(path, "path")?;
            let mut wanted = BackupOptions::default();
            if let Some(options) = &options {
                wanted.passphrase = passphrase(options)?;
                wanted.identity = optional_boolean(property(options, "identity")?, "identity")?;
            }
            Ok(async move { Json::new(&open.node().backup(&path, wanted).await?) })
        })
    }

    /// Makes the data directory of a node from a backup. Opened afterwards, the node publishes nothing
    /// (`ERR_FEED_UNCONFIRMED`) until a peer has confirmed that its catalog is not longer elsewhere, or
    /// you have with `catalog.resumePublishing()`. The backup must be what was made, to the last bit, which
    /// the identity proves: without the identity in the backup, its `keypair.json` must be in the
    /// directory. Rejects with `ERR_INVALID_STATE` when there is a node already or no key pair,
    /// `ERR_DENIED` for a wrong passphrase, `ERR_CORRUPT` for a file that is no whole backup, that was
    /// changed, or that a version made which could not prove backups yet; nothing was changed then. With
    /// the option `unauthenticated`, of such a file the catalog alone is restored.
    #[napi(
        ts_args_type = "backupPath: string, dataDir: string, options?: RestoreOptions",
        ts_return_type = "Promise<Restored>"
    )]
    pub fn restore<'env>(
        env: &'env Env,
        backup: Unknown<'env>,
        data_dir: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        call(env, &Life::default(), options, |options| {
            let backup = path_of(backup, "backupPath")?;
            let data_dir = path_of(data_dir, "dataDir")?;
            let passphrase = options.as_ref().map(passphrase).transpose()?.flatten();
            let unauthenticated = match &options {
                Some(options) => {
                    optional_boolean(property(options, "unauthenticated")?, "unauthenticated")?
                }
                None => None,
            };
            Ok(async move {
                let passphrase = passphrase.as_deref();
                let restored = match unauthenticated {
                    Some(true) => {
                        Node::restore_unauthenticated(&backup, &data_dir, passphrase).await?
                    }
                    _ => Node::restore(&backup, &data_dir, passphrase).await?,
                };
                Json::new(&restored)
            })
        })
    }
}

fn passphrase(options: &Object<'_>) -> Result<Option<String>> {
    optional_string(property(options, "passphrase")?, "passphrase")
}

#[derive(Serialize)]
struct Step {
    bytes: u64,
    total: u64,
}

type Told = ThreadsafeFunction<Json, Unknown<'static>, Json, Status, false, true>;

/// The function `onProgress` of an object of options, if there is one. What it throws is an uncaught
/// exception.
pub(super) fn progress(options: Option<&Object<'_>>) -> Result<Option<Progress>> {
    let Some(options) = options else { return Ok(None) };
    let function = property(options, "onProgress")?;
    if is_missing(&function) {
        return Ok(None);
    }
    if type_of(&function) != ValueType::Function {
        return Err(wrong("onProgress", "a function", &function));
    }
    // SAFETY: the type was checked, and the value belongs to the current environment.
    let told: Told = unsafe { function.cast::<Function<'_, Json, Unknown<'static>>>() }
        .and_then(|function| {
            function.build_threadsafe_function().callee_handled::<false>().weak::<true>().build()
        })
        .map_err(|error| internal(&error))?;
    Ok(Some(Arc::new(move |bytes, total| {
        if let Ok(step) = Json::new(&Step { bytes, total }) {
            told.call(step, ThreadsafeFunctionCallMode::NonBlocking);
        }
    })))
}
