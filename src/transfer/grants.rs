//! Who may read which book core: asked for every block.
//!
//! A grant is not the last word. Whether its peer is approved, its policy, and whether the book is being withdrawn
//! from the catalog are asked along with it, in memory: what the owner decides binds the next block, before any
//! transfer has been moved or anything was written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::policy::{PeerRules, Policy};
use crate::crypto::{Hash, PublicKey};
use crate::sync::lock;

/// The grants of all peers.
pub(super) struct Grants {
    rules: Arc<dyn PeerRules>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// The grants by their reader and core, each by its transfer.
    grants: HashMap<(PublicKey, Hash), HashMap<String, Grant>>,
    /// Books that nobody may read for the moment, and how often that was said.
    withheld: HashMap<String, usize>,
}

/// What one transfer was granted.
struct Grant {
    book_id: String,
    /// A person approved it: it may be read where policy asks for that.
    is_approved: bool,
}

impl Grants {
    pub(super) fn new(rules: Arc<dyn PeerRules>) -> Self {
        Self { rules, held: Mutex::default() }
    }

    /// Whether `peer` may have blocks of the core with this key now.
    pub(super) fn allows(&self, peer: &PublicKey, key: &Hash) -> bool {
        let held = lock(&self.held);
        let Some(grants) = held.grants.get(&(*peer, *key)) else { return false };
        if !self.rules.is_approved(peer) {
            return false;
        }
        let policy = self.rules.policy(peer);
        grants.values().any(|grant| {
            let is_permitted = match policy {
                Policy::AutoAccept => true,
                Policy::ManualApprove => grant.is_approved,
                Policy::MetadataOnly => false,
            };
            is_permitted && !held.withheld.contains_key(&grant.book_id)
        })
    }

    /// Grants the core to the transfer's peer.
    pub(super) fn add(
        &self,
        (peer, key): (PublicKey, Hash),
        transfer: &str,
        book_id: &str,
        is_approved: bool,
    ) {
        let grant = Grant { book_id: book_id.to_owned(), is_approved };
        let mut held = lock(&self.held);
        held.grants.entry((peer, key)).or_default().insert(transfer.to_owned(), grant);
    }

    /// Takes a transfer's grant back.
    pub(super) fn remove(&self, (peer, key): (PublicKey, Hash), transfer: &str) {
        let mut held = lock(&self.held);
        if let Some(grants) = held.grants.get_mut(&(peer, key)) {
            grants.remove(transfer);
            if grants.is_empty() {
                held.grants.remove(&(peer, key));
            }
        }
    }

    /// Lets nobody read these books until [`Grants::restore`], which is called as often.
    pub(super) fn withhold(&self, books: &[String]) {
        let mut held = lock(&self.held);
        for book in books {
            *held.withheld.entry(book.clone()).or_default() += 1;
        }
    }

    /// Undoes [`Grants::withhold`].
    pub(super) fn restore(&self, books: &[String]) {
        let mut held = lock(&self.held);
        for book in books {
            if let Some(count) = held.withheld.get_mut(book) {
                *count -= 1;
                if *count == 0 {
                    held.withheld.remove(book);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PublicKey = PublicKey::from_bytes([1; 32]);
    const KEY: Hash = [2; 32];

    struct Rules(Mutex<(bool, Policy)>);

    impl PeerRules for Rules {
        fn is_approved(&self, _: &PublicKey) -> bool {
            lock(&self.0).0
        }
        fn policy(&self, _: &PublicKey) -> Policy {
            lock(&self.0).1
        }
    }

    #[test]
    fn a_decision_binds_the_next_block() {
        let rules = Arc::new(Rules(Mutex::new((true, Policy::AutoAccept))));
        let grants = Grants::new(Arc::clone(&rules) as _);
        assert!(!grants.allows(&PEER, &KEY));
        grants.add((PEER, KEY), "t", "b", false);
        let may = |is_approved, policy| {
            *lock(&rules.0) = (is_approved, policy);
            grants.allows(&PEER, &KEY)
        };
        assert!(may(true, Policy::AutoAccept));
        assert!(!may(true, Policy::ManualApprove) && !may(true, Policy::MetadataOnly));
        assert!(!may(false, Policy::AutoAccept));
        grants.add((PEER, KEY), "u", "b", true);
        assert!(may(true, Policy::ManualApprove));
        assert!(!may(true, Policy::MetadataOnly) && !may(false, Policy::ManualApprove));
        assert!(!grants.allows(&PEER, &[3; 32]));
        assert!(!grants.allows(&PublicKey::from_bytes([4; 32]), &KEY));
    }

    #[test]
    fn a_book_is_withheld_as_long_as_anybody_says_so() {
        let rules = Arc::new(Rules(Mutex::new((true, Policy::AutoAccept))));
        let grants = Grants::new(rules);
        grants.add((PEER, KEY), "t", "b", false);
        let book = ["b".to_owned()];
        grants.withhold(&book);
        grants.withhold(&book);
        grants.restore(&book);
        assert!(!grants.allows(&PEER, &KEY));
        grants.restore(&book);
        grants.restore(&book);
        assert!(grants.allows(&PEER, &KEY));
        grants.remove((PEER, KEY), "t");
        assert!(!grants.allows(&PEER, &KEY));
    }
}
