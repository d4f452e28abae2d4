//! Books as JavaScript gives them: their fields, and where their bytes are.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use napi::bindgen_prelude::{
    FromNapiValue, Function, JsObjectValue, Object, Promise, ReadableStream, Unknown,
    ValidateNapiValue, ValueType,
};
use napi::threadsafe_function::ThreadsafeFunction;
use napi::{Env, JsValue, Status};

use super::argument::{is_missing, property, type_of, wrong};
use super::error::{internal, invalid};
use super::json::from_js;
use super::stream::{Chunk, ChunkReader};
use crate::catalog::Book;
use crate::error::Result;
use crate::transfer::{BookSource, Provided, Provider};

/// Fields that hold a place in many programs. Whatever a book has besides `source` is published, and
/// places must not be.
const PLACES: [&str; 5] = ["path", "file", "filePath", "filename", "location"];

/// An array of books.
pub fn books(env: &Env, value: Unknown<'_>) -> Result<Vec<Book>> {
    let mut books: Vec<Book> = from_js(env, value, "books")?;
    // SAFETY: what JSON reads as an array is an object, and of the current environment.
    let array = unsafe { value.cast::<Object>() }.map_err(|error| internal(&error))?;
    for (index, book) in (0u32..).zip(&mut books) {
        let element: Object = array.get_element(index).map_err(|error| internal(&error))?;
        book.source = source(property(&element, "source")?)?;
        book.entry.extra.remove("source");
        if let Some(name) = PLACES.iter().find(|name| book.entry.extra.contains_key(**name)) {
            return Err(invalid(format!(
                "a book's place goes into its `source`; `{name}` would be published to every peer"
            )));
        }
    }
    Ok(books)
}

fn source(value: Unknown<'_>) -> Result<Option<BookSource>> {
    match type_of(&value) {
        _ if is_missing(&value) => Ok(None),
        ValueType::String => {
            let path = super::argument::string(value, "source")?;
            // A relative one is meant as of now; the work begins when others are done.
            let path = std::path::absolute(&path).unwrap_or_else(|_| PathBuf::from(path));
            Ok(Some(BookSource::Path(path)))
        }
        _ => provider(value).map(|provider| Some(BookSource::OnDemand(provider))),
    }
}

type Ask = ThreadsafeFunction<String, Answer, String, Status, false, true>;

/// A function of a book's id that gives a path or a `ReadableStream`, or a promise of one.
pub fn provider(value: Unknown<'_>) -> Result<Provider> {
    if type_of(&value) != ValueType::Function {
        return Err(wrong("source", "a path or a function", &value));
    }
    // SAFETY: the type was checked, and the value belongs to the current environment.
    let ask: Ask = unsafe { value.cast::<Function<'_, String, Answer>>() }
        .and_then(|function| {
            function.build_threadsafe_function().callee_handled::<false>().weak::<true>().build()
        })
        .map_err(|error| internal(&error))?;
    let ask = Arc::new(ask);
    Ok(Arc::new(move |id| {
        let ask = Arc::clone(&ask);
        let answer: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
            let answer = ask.call_async_catch(id).await.map_err(|error| error.reason.clone())?;
            match answer {
                Answer::Now(place) => Ok(place.0),
                Answer::Later(place) => {
                    place.await.map(|place| place.0).map_err(|error| error.reason.clone())
                }
            }
        });
        answer
    }))
}

enum Answer {
    Now(Place),
    Later(Promise<Place>),
}

impl FromNapiValue for Answer {
    unsafe fn from_napi_value(
        env: napi::sys::napi_env,
        value: napi::sys::napi_value,
    ) -> napi::Result<Self> {
        // SAFETY: napi's own contract, handed on; the type is checked before the conversion.
        unsafe {
            if Unknown::from_raw_unchecked(env, value).is_promise()? {
                Promise::from_napi_value(env, value).map(Self::Later)
            } else {
                Place::from_napi_value(env, value).map(Self::Now)
            }
        }
    }
}

struct Place(Provided);

impl FromNapiValue for Place {
    unsafe fn from_napi_value(
        env: napi::sys::napi_env,
        value: napi::sys::napi_value,
    ) -> napi::Result<Self> {
        let refused = || {
            let message = "source() must give a path or a ReadableStream, or a promise of one";
            napi::Error::new(Status::InvalidArg, message)
        };
        // SAFETY: napi's own contract, handed on; the types are checked before the conversions.
        unsafe {
            let unknown = Unknown::from_raw_unchecked(env, value);
            if type_of(&unknown) == ValueType::String {
                return String::from_napi_value(env, value)
                    .map(|path| Self(Provided::Path(PathBuf::from(path))));
            }
            ReadableStream::<Chunk>::validate(env, value).map_err(|_| refused())?;
            let reader = ReadableStream::<Chunk>::from_napi_value(env, value)?.read()?;
            Ok(Self(Provided::Reader(Box::new(ChunkReader::new(reader)))))
        }
    }
}
