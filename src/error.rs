//! The one error of the public API: a stable code, a message for a person, a number for C.
//!
//! Each module below has an error of its own; they become this one where they reach a caller. The
//! table in [`ErrorCode`] is the only place that maps code, text and number.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $text:literal;)*) => {
        /// What went wrong, in a form that programs compare. Numbers have gaps for codes to come.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(i32)]
        pub enum ErrorCode {
            $($(#[$doc])* $variant = $number,)*
        }

        impl ErrorCode {
            /// Every code, for tests and for the bindings' tables.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The code as JavaScript's `error.code`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

codes! {
    /// A key, link or name that is none.
    InvalidKey = 10, "ERR_INVALID_KEY";
    /// An argument outside its domain.
    InvalidArgument = 11, "ERR_INVALID_ARGUMENT";
    /// Nothing goes by that key or id.
    NotFound = 12, "ERR_NOT_FOUND";
    /// The peer is blocked here.
    PeerBlocked = 13, "ERR_PEER_BLOCKED";
    /// Another process has the data directory open.
    Locked = 20, "ERR_LOCKED";
    /// The node, or the call's object, was closed.
    Closed = 21, "ERR_CLOSED";
    /// The caller's signal ended the call.
    Aborted = 22, "ERR_ABORTED";
    /// The wait reached its limit.
    Timeout = 23, "ERR_TIMEOUT";
    /// One side has not approved the other.
    NotApproved = 30, "ERR_NOT_APPROVED";
    /// The peer is known and approved, and not connected now.
    PeerOffline = 31, "ERR_PEER_OFFLINE";
    /// The peer could not be found or reached.
    PeerUnreachable = 32, "ERR_PEER_UNREACHABLE";
    /// The peer broke the protocol.
    Protocol = 33, "ERR_PROTOCOL";
    /// The peer said no.
    Denied = 40, "ERR_DENIED";
    /// The peer no longer has the book.
    Unavailable = 41, "ERR_UNAVAILABLE";
    /// The transfer is not in a state that allows this.
    InvalidState = 42, "ERR_INVALID_STATE";
    /// A limit of `design.md` was reached.
    LimitExceeded = 43, "ERR_LIMIT_EXCEEDED";
    /// The transfer was withdrawn by either side.
    Cancelled = 44, "ERR_CANCELLED";
    /// The disk is full.
    DiskFull = 50, "ERR_DISK_FULL";
    /// Stored data is damaged.
    Corrupt = 51, "ERR_CORRUPT";
    /// Reading or writing a file failed.
    Io = 52, "ERR_IO";
    /// A socket could not be opened or used.
    Network = 53, "ERR_NETWORK";
    /// The node was restored, and its catalog may be longer elsewhere: nothing is published yet.
    FeedUnconfirmed = 54, "ERR_FEED_UNCONFIRMED";
    /// Another program holds the database.
    Busy = 55, "ERR_BUSY";
    /// A defect of this library.
    Internal = 90, "ERR_INTERNAL";
}

impl ErrorCode {
    /// Whether the disk, or who else uses it, is the cause: the same may work when that has changed, and nothing is
    /// wrong with what was asked.
    pub(crate) const fn is_disk(self) -> bool {
        matches!(self, Self::DiskFull | Self::Io | Self::Busy)
    }

    /// Reads what [`ErrorCode::as_str`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure of the public API.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What went wrong, for programs.
    pub code: ErrorCode,
    /// What went wrong and what to do, for people.
    pub message: String,
}

/// What every public method returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a code and a message that says what to do.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A failure that may be the disk's: then the message begins with what to do.
    pub(crate) fn of_disk(code: ErrorCode, what: impl fmt::Display) -> Self {
        let message = match code {
            ErrorCode::DiskFull => {
                format!("the disk is full: make room on it, then try again ({what})")
            }
            ErrorCode::Io => format!(
                "the disk could not be read or written: see whether it is whole and there, then try \
                 again ({what})"
            ),
            ErrorCode::Busy => format!(
                "another program holds the node's database: let it finish, or end it, then try again ({what})"
            ),
            _ => what.to_string(),
        };
        Self { code, message }
    }

    /// The node was closed.
    #[must_use]
    pub fn closed() -> Self {
        Self::new(ErrorCode::Closed, "this node is closed; open it again with P2PNode.open()")
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let code = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
            _ => ErrorCode::Io,
        };
        Self::of_disk(code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_texts_and_numbers_are_unique() {
        let texts: HashSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        let numbers: HashSet<_> = ErrorCode::ALL.iter().map(|code| *code as i32).collect();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        assert_eq!(numbers.len(), ErrorCode::ALL.len());
        assert!(texts.iter().all(|text| text.starts_with("ERR_")));
    }
}
