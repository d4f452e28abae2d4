//! `Transfers` and `Transfer`: books on their way.

use std::sync::Mutex;

use napi::Env;
use napi::bindgen_prelude::Unknown;
use napi_derive::napi;

use super::argument::{is_missing, object, optional_path, optional_string, property, string};
use super::call::{Promised, call, on_disk, wait};
use super::json::{Json, UNDEFINED, from_js};
use super::life::Life;
use super::peer_manager::public_key;
use crate::error::Result;
use crate::sync::lock;
use crate::transfer::{self, BookRequest, Filter, TransferInfo};

/// The books on their way, in both directions, and those that went. From `node.transfers`.
#[napi]
pub struct Transfers {
    transfers: transfer::Transfers,
    life: Life,
}

/// One book on its way. Its properties show where it stands whenever they are read, and where it last
/// stood once the node is closed.
#[napi]
pub struct Transfer {
    transfer: transfer::Transfer,
    shown: Mutex<TransferInfo>,
    life: Life,
}

impl Transfers {
    pub(super) fn new(transfers: transfer::Transfers, life: Life) -> Self {
        Self { transfers, life }
    }
}

#[napi]
impl Transfers {
    /// Asks a peer for a book, now or when it is online. The request is on disk when the promise
    /// resolves, and survives crashes and restarts. Asking again for a book that is under way gives the
    /// same transfer; one that failed goes on. Rejects with `ERR_NOT_APPROVED` when the peer is not
    /// approved here.
    #[napi(ts_args_type = "request: TransferRequest", ts_return_type = "Promise<Transfer>")]
    pub fn request<'env>(&self, env: &'env Env, request: Unknown<'env>) -> Promised<'env> {
        let (transfers, life) = (self.transfers.clone(), self.life.clone());
        call(env, &self.life, Some(request), |_| {
            let given = object(request, "request")?;
            let request = BookRequest {
                peer: public_key(property(&given, "peer")?)?.to_z32(),
                book_id: string(property(&given, "bookId")?, "bookId")?,
                save_to: optional_path(property(&given, "saveTo")?, "saveTo")?,
            };
            Ok(async move { Transfer::new(transfers.request(request).await?, life) })
        })
    }

    /// Lists transfers, the newest first.
    #[napi(ts_args_type = "filter?: TransferFilter", ts_return_type = "Promise<Transfer[]>")]
    pub fn list<'env>(&self, env: &'env Env, filter: Option<Unknown<'env>>) -> Promised<'env> {
        let (transfers, life) = (self.transfers.clone(), self.life.clone());
        call(env, &self.life, filter, |_| {
            let filter: Filter = match filter.filter(|filter| !is_missing(filter)) {
                Some(filter) => from_js(env, filter, "filter")?,
                None => Filter::default(),
            };
            Ok(on_disk(move || {
                let listed = transfers.list(&filter)?.into_iter();
                let found =
                    listed.map(|info| transfers.get(&info.id)).collect::<Result<Vec<_>>>()?;
                let handles = found.into_iter().flatten();
                handles.map(|one| Transfer::new(one, life.clone())).collect::<Result<Vec<_>>>()
            }))
        })
    }

    /// The transfer with that id, also a finished one; `null` when there is none.
    #[napi(
        ts_args_type = "id: string, options?: WaitOptions",
        ts_return_type = "Promise<Transfer | null>"
    )]
    pub fn get<'env>(
        &self,
        env: &'env Env,
        id: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let (transfers, life) = (self.transfers.clone(), self.life.clone());
        call(env, &self.life, options, |_| {
            let id = string(id, "id")?;
            Ok(on_disk(move || {
                transfers.get(&id)?.map(|found| Transfer::new(found, life)).transpose()
            }))
        })
    }
}

impl Transfer {
    fn new(transfer: transfer::Transfer, life: Life) -> Result<Self> {
        let shown = Mutex::new(transfer.info()?);
        Ok(Self { transfer, shown, life })
    }

    fn info(&self) -> TransferInfo {
        let mut shown = lock(&self.shown);
        if let Ok(info) = self.transfer.info() {
            *shown = info;
        }
        shown.clone()
    }
}

#[napi]
impl Transfer {
    /// The transfer's id on this server.
    #[napi(getter)]
    pub fn id(&self) -> String {
        self.transfer.id().to_owned()
    }

    /// Which way the book goes.
    #[napi(getter, ts_return_type = "TransferDirection")]
    pub fn direction(&self) -> &'static str {
        self.info().direction.as_str()
    }

    /// The other server's key.
    #[napi(getter)]
    pub fn peer(&self) -> String {
        self.info().peer
    }

    /// The book's id in the sender's catalog.
    #[napi(getter)]
    pub fn book_id(&self) -> String {
        self.info().book_id
    }

    /// The book's title, as far as it is known.
    #[napi(getter)]
    pub fn title(&self) -> String {
        self.info().title
    }

    /// Where it stands.
    #[napi(getter, ts_return_type = "TransferState")]
    pub fn state(&self) -> &'static str {
        self.info().state.as_str()
    }

    /// Why, for a person; with `failed` and `denied` above all.
    #[napi(getter, ts_return_type = "string | null")]
    pub fn reason(&self) -> Option<String> {
        self.info().reason
    }

    /// The code of the error that made it fail.
    #[napi(getter, ts_return_type = "ErrorCode | null")]
    pub fn error(&self) -> Option<String> {
        self.info().error
    }

    /// How far it is.
    #[napi(getter, ts_return_type = "TransferProgress")]
    pub fn progress(&self) -> napi::Result<Json, super::error::Code> {
        Ok(Json::new(&self.info().progress)?)
    }

    /// Where the file is, once it is whole.
    #[napi(getter, ts_return_type = "string | null")]
    pub fn path(&self) -> Option<String> {
        self.info().path.map(|path| path.to_string_lossy().into_owned())
    }

    /// When it began.
    #[napi(getter)]
    pub fn created_at(&self) -> f64 {
        self.info().created_at as f64
    }

    /// When its state last changed.
    #[napi(getter)]
    pub fn updated_at(&self) -> f64 {
        self.info().updated_at as f64
    }

    /// All of the above as a plain object, also for `JSON.stringify`.
    #[napi(js_name = "toJSON", ts_args_type = "", ts_return_type = "TransferInfo")]
    pub fn to_json(&self) -> napi::Result<Json, super::error::Code> {
        Ok(Json::new(&self.info())?)
    }

    /// Lets the peer have the book. Approving what is approved does nothing. Rejects with
    /// `ERR_INVALID_STATE` for incoming transfers and those that are over.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<void>")]
    pub fn approve<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let transfer = self.transfer.clone();
        call(env, &self.life, options, |_| {
            Ok(async move { transfer.approve().await.map(|()| UNDEFINED) })
        })
    }

    /// Tells the peer no, with a reason for a person; also ends an outgoing transfer that is flowing.
    #[napi(
        ts_args_type = "reason?: string | null, options?: WaitOptions",
        ts_return_type = "Promise<void>"
    )]
    pub fn deny<'env>(
        &self,
        env: &'env Env,
        reason: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let transfer = self.transfer.clone();
        call(env, &self.life, options, |_| {
            let reason = optional_string(reason, "reason")?;
            Ok(async move { transfer.deny(reason).await.map(|()| UNDEFINED) })
        })
    }

    /// Stops the bytes; those that were verified stay. Works on either side, also across restarts.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<void>")]
    pub fn pause<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let transfer = self.transfer.clone();
        call(env, &self.life, options, |_| {
            Ok(async move { transfer.pause().await.map(|()| UNDEFINED) })
        })
    }

    /// Goes on with a transfer that was paused here, or that failed.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<void>")]
    pub fn resume<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let transfer = self.transfer.clone();
        call(env, &self.life, options, |_| {
            Ok(async move { transfer.resume().await.map(|()| UNDEFINED) })
        })
    }

    /// Ends the transfer on both sides and deletes what was received. Cancelling twice does nothing.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<void>")]
    pub fn cancel<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let transfer = self.transfer.clone();
        call(env, &self.life, options, |_| {
            Ok(async move { transfer.cancel().await.map(|()| UNDEFINED) })
        })
    }

    /// Waits until the book is whole and says where it is. Rejects with `ERR_DENIED` when the sender
    /// said no, `ERR_CANCELLED` when either side withdrew, and otherwise with the code of what made it
    /// fail. The wait alone does not keep the process alive.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<TransferInfo>")]
    pub fn done<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let transfer = self.transfer.clone();
        wait(env, &self.life, options, |_| {
            Ok(async move { Json::new(&transfer.done().await?.outcome()?) })
        })
    }
}
