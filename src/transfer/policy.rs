//! Who may have books: the rule for all, and for single peers.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::crypto::PublicKey;
use crate::error::{Error, ErrorCode, Result};

/// What happens when a peer asks for a book.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// It gets it.
    AutoAccept,
    /// A person decides.
    #[default]
    ManualApprove,
    /// It is told no: peers see the catalog only.
    MetadataOnly,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::AutoAccept, Self::ManualApprove, Self::MetadataOnly];

    /// The policy as the API and the database write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AutoAccept => "auto-accept",
            Self::ManualApprove => "manual-approve",
            Self::MetadataOnly => "metadata-only",
        }
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidArgument,
                "a policy is auto-accept, manual-approve or metadata-only",
            )
        })
    }
}

/// What transfers need to know about peers. Called often: answers come from memory.
pub trait PeerRules: Send + Sync + 'static {
    /// Whether books may be asked of this peer, and by it.
    fn is_approved(&self, peer: &PublicKey) -> bool;

    /// What happens when this peer asks: its own policy, else the one for all.
    fn policy(&self, peer: &PublicKey) -> Policy;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_read_back_from_their_text() {
        for policy in Policy::ALL {
            assert_eq!(policy.as_str().parse::<Policy>().unwrap(), policy);
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.as_str());
        }
        assert!("always".parse::<Policy>().is_err());
    }
}
