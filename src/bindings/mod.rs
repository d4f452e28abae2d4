//! The library in other languages. A binding converts values and errors and does nothing else.

#[cfg(feature = "node")]
pub mod node;
