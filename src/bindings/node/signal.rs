//! `AbortSignal` as Rust uses it. napi's own takes over `signal.onabort`, does not see a signal that
//! was aborted before, and loses the reason.

use napi::Env;
use napi::bindgen_prelude::{
    FnArgs, Function, FunctionRef, JsObjectValue, Object, ObjectRef, Unknown, ValueType,
};
use tokio_util::sync::CancellationToken;

use super::argument::{is_missing, object, property, type_of, wrong};
use super::error::internal;
use crate::error::Result;

/// `addEventListener` and its counterpart.
type ListenerMethod<'env> =
    Function<'env, FnArgs<(&'static str, Function<'env, Unknown<'static>, ()>)>, ()>;

/// A signal that a call listens to until it settles.
pub struct Signal {
    signal: ObjectRef<false>,
    listener: FunctionRef<Unknown<'static>, ()>,
    aborted: CancellationToken,
}

impl Signal {
    /// Listens to `options.signal`, when there is one.
    pub fn from_options(env: &Env, options: Option<&Object<'_>>) -> Result<Option<Self>> {
        let Some(options) = options else { return Ok(None) };
        let value = property(options, "signal")?;
        if is_missing(&value) {
            return Ok(None);
        }
        let signal = object(value, "signal")?;
        let is_signal = type_of(&property(&signal, "addEventListener")?) == ValueType::Function
            && type_of(&property(&signal, "aborted")?) == ValueType::Boolean;
        if !is_signal {
            return Err(wrong("signal", "an AbortSignal", &value));
        }
        Self::listen(env, &signal).map(Some).map_err(|error| internal(&error))
    }

    fn listen(env: &Env, signal: &Object<'_>) -> napi::Result<Self> {
        let aborted = CancellationToken::new();
        if signal.get_named_property::<bool>("aborted")? {
            aborted.cancel();
        }
        let on_abort = aborted.clone();
        let listener = env.create_function_from_closure("onAbort", move |_| {
            on_abort.cancel();
            Ok(())
        })?;
        let add: ListenerMethod<'_> = signal.get_named_property("addEventListener")?;
        add.apply(*signal, ("abort", listener).into())?;
        Ok(Self { signal: signal.create_ref()?, listener: listener.create_ref()?, aborted })
    }

    /// Is cancelled when the signal is aborted, and already was when the signal had been.
    pub fn aborted(&self) -> &CancellationToken {
        &self.aborted
    }

    /// Stops listening and gives `signal.reason`.
    pub fn release(self, env: &Env) -> napi::Result<Unknown<'_>> {
        let signal = self.signal.get_value(env)?;
        let listener = self.listener.borrow_back(env)?;
        let remove: ListenerMethod<'_> = signal.get_named_property("removeEventListener")?;
        remove.apply(signal, ("abort", listener).into())?;
        self.signal.unref(env)?;
        signal.get_named_property_unchecked("reason")
    }
}
