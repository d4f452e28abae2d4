//! What a decision about a peer entails: its transfers and its catalog, in the transaction of the decision and
//! before the call returns.

use rusqlite::Transaction;

use crate::catalog::{self, Catalog};
use crate::crypto::PublicKey;
use crate::error::Result;
use crate::peers::{Consequences, Standing};
use crate::store::StoreError;
use crate::tasks::{Task, task};
use crate::transfer::{self, Transfers};

/// Joins peers with catalogs and transfers.
pub(super) struct Decisions {
    pub(super) catalog: Catalog,
    pub(super) transfers: Transfers,
}

impl Consequences for Decisions {
    fn write(
        &self,
        transaction: &Transaction<'_>,
        key: &PublicKey,
        standing: Standing,
    ) -> Result<(), StoreError> {
        if standing != Standing::Approved {
            transfer::end_all_with(transaction, key)?;
        }
        if standing == Standing::Removed {
            catalog::forget_in(transaction, key)?;
        }
        Ok(())
    }

    fn carry_out(&self, key: PublicKey, standing: Standing) -> Task<Result<()>> {
        let (catalog, transfers) = (self.catalog.clone(), self.transfers.clone());
        task(async move {
            match standing {
                Standing::Approved => transfers.reconsider_peer(key).await,
                Standing::Blocked => transfers.cancel_all_with(&key).await,
                Standing::Removed => {
                    let ended = transfers.cancel_all_with(&key).await;
                    ended.and(catalog.forget(key).await)
                }
            }
        })
    }
}
