//! Errors as JavaScript sees them: an `Error` with `code` and `message`.

use napi::bindgen_prelude::{JsObjectValue, JsValue, Object, ToNapiValue, Unknown};
use napi::{Env, JsError, Status};

use crate::error::{Error, ErrorCode};

/// An [`ErrorCode`] as napi wants it for `error.code`. A method that does not wait returns
/// `napi::Result<T, Code>`, and its failure is thrown.
#[derive(Debug, Clone, Copy)]
pub struct Code(ErrorCode);

impl AsRef<str> for Code {
    fn as_ref(&self) -> &str {
        self.0.as_str()
    }
}

impl From<Status> for Code {
    fn from(status: Status) -> Self {
        Self(match status {
            Status::InvalidArg
            | Status::ObjectExpected
            | Status::StringExpected
            | Status::FunctionExpected
            | Status::NumberExpected
            | Status::BooleanExpected
            | Status::ArrayExpected => ErrorCode::InvalidArgument,
            Status::Closing => ErrorCode::Closed,
            _ => ErrorCode::Internal,
        })
    }
}

impl From<Error> for napi::Error<Code> {
    fn from(error: Error) -> Self {
        Self::new(Code(error.code), error.message)
    }
}

/// A value of a type that the method does not take.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidArgument, message)
}

/// A failure of Node-API itself, which is a defect or an environment that is going away.
pub fn internal(error: &napi::Error) -> Error {
    Error::new(Code::from(error.status).0, error.reason.clone())
}

/// An error on its way into a promise, with the `reason` of the signal that ended the call.
pub struct Rejection<'env> {
    pub error: Error,
    pub reason: Option<Unknown<'env>>,
}

impl ToNapiValue for Rejection<'_> {
    unsafe fn to_napi_value(
        raw: napi::sys::napi_env,
        rejection: Self,
    ) -> napi::Result<napi::sys::napi_value> {
        let env = Env::from_raw(raw);
        let aborted = rejection.error.code == ErrorCode::Aborted;
        let error = JsError::from(napi::Error::<Code>::from(rejection.error)).into_unknown(env);
        let mut object = Object::from_raw(raw, error.raw());
        if aborted {
            object.set_named_property("name", "AbortError")?;
        }
        if let Some(reason) = rejection.reason {
            object.set_named_property("cause", reason)?;
        }
        Ok(object.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_name_every_code_and_no_other() {
        let types = include_str!("types.d.ts");
        let codes =
            types.split("type ErrorCode =").nth(1).and_then(|rest| rest.split("\n\n").next());
        // Comments have apostrophes, too.
        let quoted = codes.unwrap_or_default().split('\'');
        let mut named: Vec<_> = quoted.filter(|text| text.starts_with("ERR_")).collect();
        let mut codes: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        named.sort_unstable();
        codes.sort_unstable();
        assert_eq!(named, codes);
    }
}
