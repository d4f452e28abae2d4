//! Values that cross between Rust and JavaScript as JSON.
//!
//! Numbers are JavaScript's: whole up to 2^53, which is enough for bytes and for milliseconds.

use napi::bindgen_prelude::{
    Function, JsObjectValue, Object, ToNapiValue, Undefined, Unknown, ValueType,
};
use napi::{Env, JsValue};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::invalid;
use crate::error::{Error, ErrorCode, Result};
use crate::text::well_formed;

/// A Rust value on its way to JavaScript, as text. Make it off the JavaScript thread.
#[derive(Debug)]
pub struct Json(String);

impl Json {
    /// The JSON of a value.
    pub fn new(value: &impl Serialize) -> Result<Self> {
        serde_json::to_string(value)
            .map(Self)
            .map_err(|error| Error::new(ErrorCode::Internal, format!("not JSON: {error}")))
    }
}

impl ToNapiValue for Json {
    unsafe fn to_napi_value(
        raw: napi::sys::napi_env,
        json: Self,
    ) -> napi::Result<napi::sys::napi_value> {
        let env = Env::from_raw(raw);
        let parse: Function<String, Unknown> = json_object(&env)?.get_named_property("parse")?;
        Ok(parse.call(json.0)?.raw())
    }
}

/// A JavaScript value as the Rust type that `T` is, or `ERR_INVALID_ARGUMENT` that names it.
pub fn from_js<T: DeserializeOwned>(env: &Env, value: Unknown<'_>, name: &str) -> Result<T> {
    let text = stringify(env, value)
        .map_err(|error| invalid(format!("{name} cannot be used: {}", error.reason)))?
        .ok_or_else(|| invalid(format!("{name} is missing")))?;
    serde_json::from_slice(&well_formed(text.as_bytes())).map_err(|error| {
        // "at line 1 column 12" is about text that the caller never saw.
        let text = error.to_string();
        let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
        invalid(format!("{name}: {message}"))
    })
}

/// `JSON.stringify(value)`; nothing for what JSON leaves out (undefined, a function).
fn stringify(env: &Env, value: Unknown<'_>) -> napi::Result<Option<String>> {
    let stringify: Function<Unknown, Unknown> =
        json_object(env)?.get_named_property("stringify")?;
    let text = stringify.call(value)?;
    match text.get_type()? {
        ValueType::String => text.coerce_to_string()?.into_utf8()?.into_owned().map(Some),
        _ => Ok(None),
    }
}

fn json_object(env: &Env) -> napi::Result<Object<'_>> {
    env.get_global()?.get_named_property("JSON")
}

/// `undefined`, for what has no value to give.
pub const UNDEFINED: Undefined = ();
