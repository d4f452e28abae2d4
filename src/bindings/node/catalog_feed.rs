//! `CatalogFeed` and `PeerCatalog`: the books that servers offer.

use napi::Env;
use napi::bindgen_prelude::{Object, Unknown};
use napi_derive::napi;
use serde::de::DeserializeOwned;

use super::argument::{is_missing, optional_boolean, optional_string, property, string};
use super::backup::progress;
use super::book::{books, provider};
use super::call::{Promised, call, on_disk};
use super::error::{Code, invalid};
use super::json::{Json, UNDEFINED, from_js};
use super::life::Life;
use super::peer_manager::public_key;
use crate::catalog::{
    self, Catalog, ListOptions, OnMissing, PublishOptions, SearchOptions, VerifyOptions,
};
use crate::error::Result;

/// This server's catalog: the books that it offers to its peers, as a Hypercore that they follow live.
/// From `node.catalog`.
#[napi]
pub struct CatalogFeed {
    catalog: Catalog,
    life: Life,
}

/// A peer's catalog as it is known here; it can be browsed while the peer is offline. From
/// `node.catalog.of(key)`.
#[napi]
pub struct PeerCatalog {
    catalog: catalog::PeerCatalog,
    life: Life,
}

impl CatalogFeed {
    pub(super) fn new(catalog: Catalog, life: Life) -> Self {
        Self { catalog, life }
    }
}

#[napi]
impl CatalogFeed {
    /// The feed's key, as 52 z32 characters.
    #[napi(getter)]
    pub fn key(&self) -> String {
        z32::encode(&self.catalog.key())
    }

    /// The feed's length in entries; it grows with each change.
    #[napi(getter)]
    pub fn length(&self) -> f64 {
        self.catalog.length() as f64
    }

    /// Adds books, or describes them anew; only what changed is appended, all or nothing, and it is on
    /// disk when the promise resolves. Rejects with `ERR_INVALID_ARGUMENT` when a book breaks a limit. Books
    /// whose file is not there are named in the result, and published as the options say.
    #[napi(
        ts_args_type = "books: Book[], options?: PublishOptions",
        ts_return_type = "Promise<CatalogChanges>"
    )]
    pub fn publish<'env>(
        &self,
        env: &'env Env,
        list: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |options| {
            let (list, options) = (books(env, list)?, publish_options(options)?);
            Ok(async move { Json::new(&catalog.publish_with(list, options).await?) })
        })
    }

    /// Takes books off the catalog; ids that are not on it are ignored. Transfers that run go on.
    #[napi(
        ts_args_type = "ids: string[], options?: WaitOptions",
        ts_return_type = "Promise<CatalogChanges>"
    )]
    pub fn unpublish<'env>(
        &self,
        env: &'env Env,
        ids: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |_| {
            let ids: Vec<String> = from_js(env, ids, "ids")?;
            Ok(async move { Json::new(&catalog.unpublish(ids).await?) })
        })
    }

    /// Makes the catalog exactly these books: appends what is new or changed, removes what is missing,
    /// leaves the rest alone. Cheap when little changed: call it at every start with the whole library. Books
    /// whose file is not there are named in the result, and stay on the catalog or not as the options say.
    #[napi(
        ts_args_type = "books: Book[], options?: PublishOptions",
        ts_return_type = "Promise<CatalogChanges>"
    )]
    pub fn sync<'env>(
        &self,
        env: &'env Env,
        list: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |options| {
            let (list, options) = (books(env, list)?, publish_options(options)?);
            Ok(async move { Json::new(&catalog.sync_with(list, options).await?) })
        })
    }

    /// A page of this server's own catalog.
    #[napi(ts_args_type = "options?: ListOptions", ts_return_type = "Promise<CatalogPage>")]
    pub fn list<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |_| {
            let options = list_options(env, options)?;
            Ok(on_disk(move || Json::new(&catalog.list(&options)?)))
        })
    }

    /// Searches the catalogs of all peers at once, as far as they have arrived here; also those of peers
    /// that are offline. What blocked peers offer is found only when `peers` names them. The work is bounded,
    /// so that a page of rare books may be short and yet have a cursor.
    #[napi(ts_args_type = "options?: SearchOptions", ts_return_type = "Promise<SearchPage>")]
    pub fn search<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |_| {
            let options = search_options(env, options)?;
            Ok(on_disk(move || Json::new(&catalog.search(&options)?)))
        })
    }

    /// One of this server's own books; `null` when it is not on the catalog.
    #[napi(
        ts_args_type = "bookId: string, options?: WaitOptions",
        ts_return_type = "Promise<BookEntry | null>"
    )]
    pub fn get<'env>(
        &self,
        env: &'env Env,
        book_id: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |_| {
            let id = string(book_id, "bookId")?;
            Ok(on_disk(move || Json::new(&catalog.get(&id)?)))
        })
    }

    /// What is known of this server's own catalog.
    #[napi(
        ts_args_type = "options?: WaitOptions",
        ts_return_type = "Promise<CatalogStatus | null>"
    )]
    pub fn status<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |_| Ok(on_disk(move || Json::new(&catalog.status()?))))
    }

    /// Reads this server's catalog again, every entry against what was signed, and lets SQLite check the
    /// database; with `peers` also what is here of peers' catalogs. Damage to the own catalog stops
    /// publishing (`ERR_CORRUPT`) while reading goes on; damage to a peer's is fetched again.
    #[napi(
        ts_args_type = "options?: VerifyOptions",
        ts_return_type = "Promise<CatalogVerification>"
    )]
    pub fn verify<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |options| {
            let mut wanted =
                VerifyOptions { progress: progress(options.as_ref())?, ..VerifyOptions::default() };
            if let Some(options) = &options {
                let peers = optional_boolean(property(options, "peers")?, "peers")?;
                wanted.peers = peers.unwrap_or_default();
            }
            Ok(async move { Json::new(&catalog.verify(wanted).await?) })
        })
    }

    /// Says that publishing may go on after it was stopped. After a restore it does at once: call this
    /// when nothing was published since the backup. After the catalog was found to be written elsewhere,
    /// call it when the other copy was stopped for good: what peers have is fetched first. Rejects with
    /// `ERR_CORRUPT` when the catalog is damaged.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<void>")]
    pub fn resume_publishing<'env>(
        &self,
        env: &'env Env,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |_| {
            Ok(async move {
                catalog.resume_publishing().await?;
                Ok(UNDEFINED)
            })
        })
    }

    /// Starts a new feed with the books that are on the catalog now, and gives its key. Peers follow it
    /// as soon as they are connected; the old feed is deleted here.
    /// Books whose entries were damaged are left out: publish them again.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<string>")]
    pub fn start_new_feed<'env>(
        &self,
        env: &'env Env,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |_| {
            Ok(async move { Ok(z32::encode(&catalog.start_new_feed().await?)) })
        })
    }

    /// Says who is asked for books that were published with a function in an earlier run, until they
    /// are published again; `null` for nobody.
    #[napi(ts_args_type = "provider: BookProvider | null", ts_return_type = "void")]
    pub fn set_provider(&self, function: Unknown<'_>) -> napi::Result<(), Code> {
        self.life.check()?;
        let function = if is_missing(&function) { None } else { Some(provider(function)?) };
        self.catalog.set_provider(function);
        Ok(UNDEFINED)
    }

    /// A peer's catalog. Throws `ERR_INVALID_KEY` for what is no key; one of which nothing is known yet
    /// is empty.
    #[napi(ts_args_type = "peerKey: string", ts_return_type = "PeerCatalog")]
    pub fn of(&self, key: Unknown<'_>) -> napi::Result<PeerCatalog, Code> {
        self.life.check()?;
        let catalog = self.catalog.of(public_key(key)?);
        Ok(PeerCatalog { catalog, life: self.life.clone() })
    }
}

#[napi]
impl PeerCatalog {
    /// Whose catalog it is.
    #[napi(getter)]
    pub fn peer(&self) -> String {
        self.catalog.peer().to_z32()
    }

    /// A page of the catalog, as far as it has arrived here.
    #[napi(ts_args_type = "options?: ListOptions", ts_return_type = "Promise<CatalogPage>")]
    pub fn list<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |_| {
            let options = list_options(env, options)?;
            Ok(on_disk(move || Json::new(&catalog.list(&options)?)))
        })
    }

    /// One book; `null` when it is not on offer, or not known yet.
    #[napi(
        ts_args_type = "bookId: string, options?: WaitOptions",
        ts_return_type = "Promise<BookEntry | null>"
    )]
    pub fn get<'env>(
        &self,
        env: &'env Env,
        book_id: Unknown<'env>,
        options: Option<Unknown<'env>>,
    ) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |_| {
            let id = string(book_id, "bookId")?;
            Ok(on_disk(move || Json::new(&catalog.get(&id)?)))
        })
    }

    /// How much of the catalog is here, and when it last changed; `null` until its feed is known.
    #[napi(
        ts_args_type = "options?: WaitOptions",
        ts_return_type = "Promise<CatalogStatus | null>"
    )]
    pub fn status<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let catalog = self.catalog.clone();
        call(env, &self.life, options, |_| Ok(on_disk(move || Json::new(&catalog.status()?))))
    }
}

fn publish_options(options: Option<Object<'_>>) -> Result<PublishOptions> {
    let missing = match &options {
        Some(options) => optional_string(property(options, "missing")?, "missing")?,
        None => None,
    };
    let missing = match missing.as_deref() {
        None | Some("publish") => OnMissing::Publish,
        Some("skip") => OnMissing::Skip,
        Some(_) => return Err(invalid("missing must be 'publish' or 'skip'")),
    };
    Ok(PublishOptions { missing })
}

fn list_options(env: &Env, options: Option<Unknown<'_>>) -> Result<ListOptions> {
    let options: ListOptions = options_of(env, options)?;
    check_limit(options.limit)?;
    Ok(options)
}

fn search_options(env: &Env, options: Option<Unknown<'_>>) -> Result<SearchOptions> {
    let options: SearchOptions = options_of(env, options)?;
    check_limit(options.limit)?;
    Ok(options)
}

fn options_of<T: Default + DeserializeOwned>(env: &Env, value: Option<Unknown<'_>>) -> Result<T> {
    match value.filter(|value| !is_missing(value)) {
        Some(value) => from_js(env, value, "options"),
        None => Ok(T::default()),
    }
}

fn check_limit(limit: Option<u32>) -> Result<()> {
    match limit {
        Some(0) | Some(1001..) => Err(invalid("limit must be from 1 to 1000")),
        _ => Ok(()),
    }
}
