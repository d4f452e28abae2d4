//! `P2PNode`: one running endpoint over one data directory.

use std::sync::{Arc, Mutex};

use napi::Env;
use napi::bindgen_prelude::{
    ClassInstance, Function, JavaScriptClassExt, JsObjectValue, Object, Reference, This,
    ToNapiValue, Unknown, ValueType,
};
use napi_derive::napi;
use serde_json::Value;
use tokio::sync::oneshot;

use super::argument::{
    is_missing, object, optional_count, optional_path, options as read_options, path, property,
    string, type_of, wrong,
};
use super::call::{Promised, call};
use super::catalog_feed::CatalogFeed;
use super::error::{Code, internal, invalid};
use super::events::{Listener, NodeEvents};
use super::identity::Identity;
use super::json::{Json, UNDEFINED, from_js};
use super::life::Life;
use super::open::Open;
use super::peer_manager::PeerManager;
use super::transfers::Transfers;
use crate::error::{Error, Result};
use crate::node::{Node, NodeOptions};
use crate::sync::lock;

/// One running endpoint over one data directory: this server among its peers.
///
/// An open node keeps the process alive until `close()` or `unref()`. After `close()` every method fails
/// with `ERR_CLOSED`, except `close()`, `ref()`, `unref()` and `off()`, which do nothing then.
#[napi]
pub struct P2PNode {
    open: Arc<Open>,
    identity: Reference<Identity>,
    peers: Reference<PeerManager>,
    catalog: Reference<CatalogFeed>,
    transfers: Reference<Transfers>,
    listeners: Mutex<Vec<Listener>>,
}

impl P2PNode {
    pub(super) fn opened(&self) -> &Arc<Open> {
        &self.open
    }
}

#[napi]
impl P2PNode {
    /// Opens the node: makes the data directory and the identity at the first start, takes up what an
    /// earlier run left, and goes online in the background. Rejects with `ERR_LOCKED` when another
    /// process has the directory, `ERR_INVALID_ARGUMENT` for a bad option, `ERR_CORRUPT` when stored
    /// data is damaged, `ERR_NETWORK` when no socket can be bound.
    #[napi(ts_args_type = "options: OpenOptions", ts_return_type = "Promise<P2PNode>")]
    pub fn open<'env>(env: &'env Env, options: Unknown<'env>) -> Promised<'env> {
        call(env, &Life::default(), Some(options), |_| {
            let options = open_options(env, options)?;
            Ok(async move {
                // In a task of its own: opening is not to be left half way when the signal ends the
                // call; what was opened in vain is closed again.
                let (opened, receive) = oneshot::channel();
                crate::tasks::spawn(async move {
                    if let Err(Ok(node)) = opened.send(Node::open(options).await) {
                        node.close().await;
                    }
                });
                let node = receive.await.map_err(|_| Error::closed())??;
                Ok(Opened(Open::new(node)))
            })
        })
    }

    /// Who this server is.
    #[napi(getter)]
    pub fn identity(&self, env: Env) -> napi::Result<Reference<Identity>> {
        self.identity.clone(env)
    }

    /// The other servers.
    #[napi(getter)]
    pub fn peers(&self, env: Env) -> napi::Result<Reference<PeerManager>> {
        self.peers.clone(env)
    }

    /// The books on offer, here and at the peers.
    #[napi(getter)]
    pub fn catalog(&self, env: Env) -> napi::Result<Reference<CatalogFeed>> {
        self.catalog.clone(env)
    }

    /// The books on their way.
    #[napi(getter)]
    pub fn transfers(&self, env: Env) -> napi::Result<Reference<Transfers>> {
        self.transfers.clone(env)
    }

    /// What works and what does not, for a person.
    #[napi(ts_return_type = "NodeStatus")]
    pub fn status(&self) -> napi::Result<Json, Code> {
        self.open.life().check()?;
        Ok(Json::new(&self.open.node().status()?)?)
    }

    /// Goes off the network, before the machine sleeps or while there is nothing to do: peers hear that
    /// this server goes, and nothing is sent or received until `resume()`. Everything that needs no
    /// network goes on working. Calling it again does nothing.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<void>")]
    pub fn suspend<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let open = Arc::clone(&self.open);
        call(env, self.open.life(), options, |_| {
            Ok(async move {
                open.node().suspend().await?;
                Ok(UNDEFINED)
            })
        })
    }

    /// Goes back on the network, on the same port if that is free, and dials every peer at once. Rejects
    /// with `ERR_NETWORK` when no socket can be bound. Calling it again does nothing.
    #[napi(ts_args_type = "options?: WaitOptions", ts_return_type = "Promise<void>")]
    pub fn resume<'env>(&self, env: &'env Env, options: Option<Unknown<'env>>) -> Promised<'env> {
        let open = Arc::clone(&self.open);
        call(env, self.open.life(), options, |_| {
            Ok(async move {
                open.node().resume().await?;
                Ok(UNDEFINED)
            })
        })
    }

    /// What happens in the node from now on, or after the event whose number is given: iterate with
    /// `for await`. A reader that is too slow gets a `gap` event for what it missed. The iteration ends
    /// when the node is closed.
    #[napi(ts_args_type = "options?: EventOptions", ts_return_type = "NodeEvents")]
    pub fn events<'env>(
        &self,
        env: &'env Env,
        options: Option<Unknown<'env>>,
    ) -> napi::Result<ClassInstance<'env, NodeEvents>, Code> {
        self.open.life().check()?;
        let options = read_options(options)?;
        let (mut after, mut signal) = (None, None);
        if let Some(options) = options {
            after = optional_count(property(&options, "after")?, "after")?;
            signal = Some(property(&options, "signal")?).filter(|signal| !is_missing(signal));
        }
        let subscription = self.open.node().events().subscribe(after);
        iterator(env, NodeEvents::new(subscription), signal)
            .map_err(|error| internal(&error).into())
    }

    /// Calls the function with every event of that type from now on. What it throws is an uncaught
    /// exception. A listener alone does not keep the process alive.
    #[napi(
        ts_generic_types = "Type extends NodeEvent['type']",
        ts_args_type = "type: Type, listener: (event: EventOf<Type>) => void",
        ts_return_type = "this"
    )]
    pub fn on<'env>(
        &self,
        this: This<'env, Object<'env>>,
        kind: Unknown<'env>,
        listener: Unknown<'env>,
    ) -> napi::Result<Object<'env>, Code> {
        self.open.life().check()?;
        let kind = string(kind, "type")?;
        if type_of(&listener) != ValueType::Function {
            return Err(wrong("listener", "a function", &listener).into());
        }
        // SAFETY: the type was checked, and the value belongs to the current environment.
        let listener = unsafe { listener.cast::<Function<'_, Json, Unknown<'static>>>() }
            .and_then(|function| Listener::start(self.open.node().events(), kind, function))
            .map_err(|error| internal(&error))?;
        lock(&self.listeners).push(listener);
        Ok(this.object)
    }

    /// Stops calling a function that was given to `on()`. One that was not is ignored.
    #[napi(
        ts_generic_types = "Type extends NodeEvent['type']",
        ts_args_type = "type: Type, listener: (event: EventOf<Type>) => void",
        ts_return_type = "this"
    )]
    pub fn off<'env>(
        &self,
        env: &'env Env,
        this: This<'env, Object<'env>>,
        kind: Unknown<'env>,
        listener: Unknown<'env>,
    ) -> napi::Result<Object<'env>, Code> {
        let kind = string(kind, "type")?;
        let mut listeners = lock(&self.listeners);
        let found = listeners.iter().rposition(|other| other.is(env, &kind, &listener));
        let removed = found.map(|index| listeners.remove(index));
        drop(listeners);
        drop(removed);
        Ok(this.object)
    }

    /// Keeps the process alive while the node is open, as it is at first.
    #[napi(js_name = "ref", ts_return_type = "this")]
    pub fn refer<'env>(
        &self,
        env: &'env Env,
        this: This<'env, Object<'env>>,
    ) -> napi::Result<Object<'env>, Code> {
        Open::refer(&self.open, env).map_err(|error| internal(&error))?;
        Ok(this.object)
    }

    /// Lets the process end although the node is open.
    #[napi(ts_return_type = "this")]
    pub fn unref<'env>(&self, this: This<'env, Object<'env>>) -> Object<'env> {
        self.open.unrefer();
        this.object
    }

    /// Closes the node: peers hear that it goes, transfers stop where they are and go on at the next
    /// start, all that was acknowledged is on disk. Calls in flight fail with `ERR_CLOSED`. Calling it
    /// again waits for the same end.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn close<'env>(&self, env: &'env Env) -> Promised<'env> {
        lock(&self.listeners).clear();
        let open = Arc::clone(&self.open);
        call(env, &Life::default(), None, |_| {
            open.life().end();
            Ok(async move {
                open.close().await;
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

/// An open node on its way to the JavaScript thread. Dropped on it, the node is closed.
struct Opened(Arc<Open>);

impl ToNapiValue for Opened {
    unsafe fn to_napi_value(
        raw: napi::sys::napi_env,
        opened: Self,
    ) -> napi::Result<napi::sys::napi_value> {
        let env = Env::from_raw(raw);
        let (node, life) = (opened.0.node(), opened.0.life());
        let object = P2PNode {
            identity: Identity::into_reference(
                Identity::new(node.identity().clone(), life.clone()),
                env,
            )?,
            peers: PeerManager::into_reference(
                PeerManager::new(node.peers().clone(), life.clone()),
                env,
            )?,
            catalog: CatalogFeed::into_reference(
                CatalogFeed::new(node.catalog().clone(), life.clone()),
                env,
            )?,
            transfers: Transfers::into_reference(
                Transfers::new(node.transfers().clone(), life.clone()),
                env,
            )?,
            listeners: Mutex::default(),
            open: Arc::clone(&opened.0),
        };
        Open::refer(&opened.0, &env)?;
        // SAFETY: napi calls us with its own environment, on its thread.
        unsafe { P2PNode::to_napi_value(raw, object) }
    }
}

/// The iterator with its signal as a property, where its `next()` looks for it.
fn iterator<'env>(
    env: &'env Env,
    events: NodeEvents,
    signal: Option<Unknown<'env>>,
) -> napi::Result<ClassInstance<'env, NodeEvents>> {
    let instance = events.into_instance(env)?;
    if let Some(signal) = signal {
        instance.as_object(env).set_named_property("signal", signal)?;
    }
    Ok(instance)
}

/// The options of `open()`. Bootstrap nodes may be objects, too, as JavaScript's hyperdht gives them.
fn open_options(env: &Env, value: Unknown<'_>) -> Result<NodeOptions> {
    let options = object(value, "options")?;
    let data_dir = path(property(&options, "dataDir")?, "dataDir")?;
    let books_dir = optional_path(property(&options, "booksDir")?, "booksDir")?;
    let mut options: Value = from_js(env, value, "options")?;
    if let Some(nodes) = options.get_mut("bootstrap").and_then(Value::as_array_mut) {
        for node in nodes {
            if let (Some(host), Some(port)) = (node["host"].as_str(), node["port"].as_u64()) {
                *node = format!("{host}:{port}").into();
            }
        }
    }
    let options: NodeOptions =
        serde_json::from_value(options).map_err(|error| invalid(format!("options: {error}")))?;
    Ok(NodeOptions { data_dir, books_dir, ..options })
}
