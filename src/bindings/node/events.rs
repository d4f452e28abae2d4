//! A node's events: as an async iterator, and for listeners.

use std::sync::Arc;

use napi::bindgen_prelude::{Function, FunctionRef, Object, This, ToNapiValue, Unknown};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, Status};
use napi_derive::napi;
use serde::Serialize;
use tokio::sync::{Mutex, oneshot};
use tokio_util::sync::CancellationToken;

use super::call::{Promised, wait};
use super::json::Json;
use super::life::Life;
use crate::events::{Events, NodeEvent, Subscription};

/// The events of a node, for `for await`; from `node.events()`. A waiting iterator does not keep the
/// process alive. It ends when the node is closed, and fails with `ERR_ABORTED` when its signal is aborted.
#[napi]
pub struct NodeEvents {
    subscription: Arc<Mutex<Subscription>>,
    ended: CancellationToken,
}

/// JavaScript's `IteratorResult`.
#[derive(Serialize)]
struct Step {
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<NodeEvent>,
}

impl NodeEvents {
    pub(super) fn new(subscription: Subscription) -> Self {
        let subscription = Arc::new(Mutex::new(subscription));
        Self { subscription, ended: CancellationToken::new() }
    }
}

#[napi]
impl NodeEvents {
    /// The next event, as soon as there is one. Calls that overlap are answered in their order.
    #[napi(ts_args_type = "", ts_return_type = "Promise<IteratorResult<NodeEvent, undefined>>")]
    pub fn next<'env>(&self, env: &'env Env, this: This<'env, Object<'env>>) -> Promised<'env> {
        let (subscription, ended) = (Arc::clone(&self.subscription), self.ended.clone());
        // The iterator has its signal as a property, as options have; the node's end is its end.
        let options = this.object.into_unknown(env)?;
        wait(env, &Life::default(), Some(options), |_| {
            Ok(async move {
                let value = tokio::select! {
                    biased;
                    () = ended.cancelled() => None,
                    event = async { subscription.lock().await.next().await } => event,
                };
                if value.is_none() {
                    ended.cancel();
                }
                Json::new(&Step { done: value.is_none(), value })
            })
        })
    }

    /// Ends the iteration; `break` calls it.
    #[napi(
        js_name = "return",
        ts_args_type = "",
        ts_return_type = "Promise<IteratorResult<NodeEvent, undefined>>"
    )]
    pub fn finish<'env>(&self, env: &'env Env) -> Promised<'env> {
        self.ended.cancel();
        wait(env, &Life::default(), None, |_| {
            Ok(async { Json::new(&Step { done: true, value: None }) })
        })
    }

    /// This iterator, for `for await`.
    #[napi(well_known_symbol = "asyncIterator", ts_args_type = "", ts_return_type = "this")]
    pub fn async_iterator<'env>(&self, this: This<'env, Object<'env>>) -> Object<'env> {
        this.object
    }
}

/// A function that was given to `node.on()`.
pub struct Listener {
    kind: String,
    function: FunctionRef<Json, Unknown<'static>>,
    stopped: CancellationToken,
}

type Call = ThreadsafeFunction<Json, Unknown<'static>, Json, Status, false, true>;

impl Listener {
    /// Calls `function` with each event of that kind, one at a time. What it throws is an uncaught
    /// exception, as with any emitter.
    pub fn start(
        events: &Events,
        kind: String,
        function: Function<'_, Json, Unknown<'static>>,
    ) -> napi::Result<Self> {
        let call: Call = function
            .build_threadsafe_function()
            .callee_handled::<false>()
            .weak::<true>()
            .build()?;
        let stopped = CancellationToken::new();
        let mut subscription = events.subscribe(None);
        let (wanted, stop) = (kind.clone(), stopped.clone());
        napi::bindgen_prelude::spawn(async move {
            let pump = async {
                while let Some(event) = subscription.next().await {
                    let Ok(event) = serde_json::to_value(&event) else { continue };
                    if event["type"] == wanted && !deliver(&call, &event).await {
                        break;
                    }
                }
            };
            tokio::select! { () = stop.cancelled() => {}, () = pump => {} }
        });
        Ok(Self { kind, function: function.create_ref()?, stopped })
    }

    /// Whether it is this function, listening for this kind.
    pub fn is(&self, env: &Env, kind: &str, function: &Unknown<'_>) -> bool {
        let same = |own| env.strict_equals(own, *function).unwrap_or(false);
        self.kind == kind && self.function.borrow_back(env).is_ok_and(same)
    }
}

/// Gives the event to the function and waits until it returns; `false` when there is nobody to call.
async fn deliver(call: &Call, event: &serde_json::Value) -> bool {
    let Ok(event) = Json::new(event) else { return true };
    let (done, returned) = oneshot::channel();
    let queued = call.call_with_return_value(
        event,
        ThreadsafeFunctionCallMode::NonBlocking,
        |outcome, _| {
            let _ = done.send(());
            outcome.map(drop) // an error becomes an uncaught exception
        },
    );
    queued == Status::Ok && returned.await.is_ok()
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}
