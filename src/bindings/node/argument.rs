//! Reads arguments by hand, so that a wrong type is an `ERR_INVALID_ARGUMENT` like any other failure
//! and says which argument it was.

use std::path::PathBuf;

use napi::bindgen_prelude::{FromNapiValue, JsObjectValue, Object, Uint8Array, Unknown, ValueType};

use super::error::invalid;
use crate::error::Result;

/// The type of a value, as JavaScript's `typeof` names it.
pub fn type_of(value: &Unknown<'_>) -> ValueType {
    value.get_type().unwrap_or(ValueType::Unknown)
}

/// Whether an argument was left out.
pub fn is_missing(value: &Unknown<'_>) -> bool {
    matches!(type_of(value), ValueType::Undefined | ValueType::Null)
}

/// A string argument.
pub fn string(value: Unknown<'_>, name: &str) -> Result<String> {
    if type_of(&value) != ValueType::String {
        return Err(wrong(name, "a string", &value));
    }
    cast(value, name)
}

/// A string argument that may be left out.
pub fn optional_string(value: Unknown<'_>, name: &str) -> Result<Option<String>> {
    if is_missing(&value) { Ok(None) } else { string(value, name).map(Some) }
}

/// A path, as it is now: `process.chdir` does not change what was given before.
pub fn path(value: Unknown<'_>, name: &str) -> Result<PathBuf> {
    absolute(&string(value, name)?, name)
}

/// A path that may be left out.
pub fn optional_path(value: Unknown<'_>, name: &str) -> Result<Option<PathBuf>> {
    if is_missing(&value) { Ok(None) } else { path(value, name).map(Some) }
}

/// A path from the working directory as it is now. Separators at its end stay.
pub fn absolute(path: &str, name: &str) -> Result<PathBuf> {
    if path.is_empty() {
        return Err(invalid(format!("{name} must not be empty")));
    }
    std::path::absolute(path).map_err(|error| invalid(format!("{name} is no path: {error}")))
}

/// A boolean that may be left out.
pub fn optional_boolean(value: Unknown<'_>, name: &str) -> Result<Option<bool>> {
    match type_of(&value) {
        _ if is_missing(&value) => Ok(None),
        ValueType::Boolean => cast(value, name).map(Some),
        _ => Err(wrong(name, "a boolean", &value)),
    }
}

/// A whole number, zero or more, that may be left out.
pub fn optional_count(value: Unknown<'_>, name: &str) -> Result<Option<u64>> {
    if is_missing(&value) {
        return Ok(None);
    }
    if type_of(&value) != ValueType::Number {
        return Err(wrong(name, "a number", &value));
    }
    let number: f64 = cast(value, name)?;
    let largest = 9_007_199_254_740_991.0; // Number.MAX_SAFE_INTEGER
    if number.fract() != 0.0 || !(0.0..=largest).contains(&number) {
        return Err(invalid(format!("{name} must be a whole number, zero or more")));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked above
    Ok(Some(number as u64))
}

/// A copy of the bytes of a `Uint8Array` (a `Buffer` is one).
pub fn bytes(value: Unknown<'_>, name: &str) -> Result<Vec<u8>> {
    // SAFETY: the value belongs to the environment that is calling us now; another type is refused.
    let array = unsafe { value.cast::<Uint8Array>() };
    array.map(|array| array.to_vec()).map_err(|_| wrong(name, "a Uint8Array", &value))
}

/// An object argument.
pub fn object<'env>(value: Unknown<'env>, name: &str) -> Result<Object<'env>> {
    if type_of(&value) != ValueType::Object {
        return Err(wrong(name, "an object", &value));
    }
    cast(value, name)
}

/// An object of options that may be left out.
pub fn options<'env>(value: Option<Unknown<'env>>) -> Result<Option<Object<'env>>> {
    value.filter(|value| !is_missing(value)).map(|value| object(value, "options")).transpose()
}

/// A property of an object, `undefined` when it is not there.
pub fn property<'env>(object: &Object<'env>, name: &str) -> Result<Unknown<'env>> {
    object
        .get_named_property_unchecked(name)
        .map_err(|error| invalid(format!("{name} cannot be read: {}", error.reason)))
}

/// "… must be …, not …"
pub fn wrong(name: &str, wanted: &str, value: &Unknown<'_>) -> crate::error::Error {
    let found = type_of(value).to_string().to_lowercase();
    invalid(format!("{name} must be {wanted}, not {found}"))
}

fn cast<V: FromNapiValue>(value: Unknown<'_>, name: &str) -> Result<V> {
    // SAFETY: the caller has checked the type, and the value belongs to the current environment.
    unsafe { value.cast() }.map_err(|error| invalid(format!("{name}: {}", error.reason)))
}
