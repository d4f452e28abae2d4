//! A Rust future as a promise.
//!
//! napi's own futures can only reject with napi's status codes, and a pending one always keeps the
//! process alive. Here the rejection is an `Error` with a code of ours, an `AbortSignal` may end the
//! wait, and whoever starts it says whether the process waits for it.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use napi::bindgen_prelude::{Function, JsObjectValue, Object, PromiseRaw, ToNapiValue, Unknown};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, JsValue, Status};

use super::argument::options as read_options;
use super::error::{Rejection, internal};
use super::life::Life;
use super::signal::Signal;
use crate::error::{Error, ErrorCode, Result};
use crate::tasks::{self, Task, task};

/// What a method that waits gives to napi.
pub type Promised<'env> = napi::Result<Unknown<'env>>;

/// The promise of what `prepare`'s future gives; the process stays alive until it settles.
///
/// `prepare` reads the arguments on the JavaScript thread; its failure rejects the promise too.
/// `options` is the argument that may hold `signal`; after the end of `life` the outcome is
/// `ERR_CLOSED`.
pub fn call<'env, J, F>(
    env: &'env Env,
    life: &Life,
    options: Option<Unknown<'env>>,
    prepare: impl FnOnce(Option<Object<'env>>) -> Result<F>,
) -> Promised<'env>
where
    J: ToNapiValue + Send + 'static,
    F: Future<Output = Result<J>> + Send + 'static,
{
    start::<J, F, false>(env, life, options, prepare)
}

/// As [`call`], for waits that may have no end: the process does not stay alive for them.
pub fn wait<'env, J, F>(
    env: &'env Env,
    life: &Life,
    options: Option<Unknown<'env>>,
    prepare: impl FnOnce(Option<Object<'env>>) -> Result<F>,
) -> Promised<'env>
where
    J: ToNapiValue + Send + 'static,
    F: Future<Output = Result<J>> + Send + 'static,
{
    start::<J, F, true>(env, life, options, prepare)
}

fn start<'env, J, F, const WEAK: bool>(
    env: &'env Env,
    life: &Life,
    options: Option<Unknown<'env>>,
    prepare: impl FnOnce(Option<Object<'env>>) -> Result<F>,
) -> Promised<'env>
where
    J: ToNapiValue + Send + 'static,
    F: Future<Output = Result<J>> + Send + 'static,
{
    let begun = read_options(options).and_then(|options| {
        life.check()?;
        Ok((Signal::from_options(env, options.as_ref())?, options))
    });
    let (signal, work) = match begun {
        Ok((Some(signal), _)) if signal.aborted().is_cancelled() => (Some(signal), Err(aborted())),
        Ok((signal, options)) => (signal, prepare(options)),
        Err(error) => (None, Err(error)),
    };
    let work = match work {
        Ok(work) => task(work),
        // Rejected here and now: a weak promise could be outlived by the process otherwise.
        Err(error) => return rejected(env, error, signal),
    };
    settled::<J, WEAK>(env, life.clone(), signal, work)
}

/// The promise of what `work` gives. Apart from [`start`], to be compiled once for each type of outcome.
fn settled<J: ToNapiValue + Send + 'static, const WEAK: bool>(
    env: &Env,
    life: Life,
    signal: Option<Signal>,
    work: Task<Result<J>>,
) -> Promised<'_> {
    let (promise, settle) = promise::<J, WEAK>(env)?;
    let token = signal.as_ref().map(|signal| signal.aborted().clone()).unwrap_or_default();
    napi::bindgen_prelude::spawn(async move {
        let outcome = run(async move { life.run(work).await }, token).await;
        // A refusal means that the environment is going away, and with it whoever would look.
        let _ =
            settle.call(Settlement { outcome, signal }, ThreadsafeFunctionCallMode::NonBlocking);
    });
    Ok(promise)
}

fn rejected(env: &Env, error: Error, signal: Option<Signal>) -> Promised<'_> {
    let reason = signal.map(|signal| signal.release(env)).transpose()?;
    let reason = reason.filter(|_| error.code == ErrorCode::Aborted);
    let promise = PromiseRaw::<()>::reject(env, Rejection { error, reason })?;
    // SAFETY: the value is the promise that was just made, in this environment and scope.
    Ok(unsafe { Unknown::from_raw_unchecked(env.raw(), promise.raw()) })
}

async fn run<J: Send + 'static>(
    work: impl Future<Output = Result<J>> + Send + 'static,
    token: tokio_util::sync::CancellationToken,
) -> Result<J> {
    // In a task of its own, so that a panic is this call's failure and nothing else.
    let task = tasks::spawn(async move {
        tokio::select! {
            biased;
            () = token.cancelled() => Err(aborted()),
            outcome = work => outcome,
        }
    });
    task.await.unwrap_or_else(|_| Err(defect()))
}

fn aborted() -> Error {
    Error::new(ErrorCode::Aborted, "the call was aborted by its signal")
}

/// How a promise ends, on its way to the JavaScript thread.
pub struct Settlement<J> {
    outcome: Result<J>,
    signal: Option<Signal>,
}

impl<J: ToNapiValue> ToNapiValue for Settlement<J> {
    unsafe fn to_napi_value(
        raw: napi::sys::napi_env,
        settlement: Self,
    ) -> napi::Result<napi::sys::napi_value> {
        let env = Env::from_raw(raw);
        let reason = settlement.signal.map(|signal| signal.release(&env)).transpose()?;
        let converted = settlement.outcome.and_then(|value| {
            // SAFETY: napi calls us with its own environment, on its thread.
            unsafe { J::to_napi_value(raw, value) }.map_err(|error| internal(&error))
        });
        match converted {
            Ok(value) => Ok(value),
            // Resolving with a rejected promise rejects, so one function settles either way.
            Err(error) => {
                let reason = reason.filter(|_| error.code == ErrorCode::Aborted);
                Ok(PromiseRaw::<()>::reject(&env, Rejection { error, reason })?.raw())
            }
        }
    }
}

type Settle<J, const WEAK: bool> =
    ThreadsafeFunction<Settlement<J>, Unknown<'static>, Settlement<J>, Status, false, WEAK>;

/// `new Promise(…)` and what settles it from any thread.
fn promise<J, const WEAK: bool>(env: &Env) -> napi::Result<(Unknown<'_>, Settle<J, WEAK>)>
where
    J: ToNapiValue + Send + 'static,
{
    let slot: Rc<RefCell<Option<Settle<J, WEAK>>>> = Rc::default();
    let filled = Rc::clone(&slot);
    let executor: Function<'_, Unknown<'static>, ()> =
        env.create_function_from_closure("executor", move |context| {
            let resolve: Function<'_, Settlement<J>, Unknown<'static>> = context.get(0)?;
            let settle = resolve
                .build_threadsafe_function::<Settlement<J>>()
                .callee_handled::<false>()
                .weak::<WEAK>()
                .build()?;
            filled.borrow_mut().replace(settle);
            Ok(())
        })?;
    let constructor: Function<'_, Function<'_, Unknown<'static>, ()>, Unknown<'_>> =
        env.get_global()?.get_named_property("Promise")?;
    let promise = constructor.new_instance(executor)?;
    let settle = slot.borrow_mut().take().ok_or_else(|| {
        napi::Error::new(Status::GenericFailure, "Promise did not call its executor")
    })?;
    // SAFETY: the value is the promise that was made above, in this environment and scope.
    Ok((unsafe { Unknown::from_raw_unchecked(env.raw(), promise.raw()) }, settle))
}

/// Reads the database away from the threads that serve the network.
pub async fn on_disk<T: Send + 'static>(
    read: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tasks::blocking(read).await.unwrap_or_else(|_| Err(defect()))
}

fn defect() -> Error {
    Error::new(ErrorCode::Internal, "a defect of @alex/p2p ended this call; please report it")
}
