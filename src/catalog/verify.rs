//! Reads everything again to see that it is whole.

use serde::Serialize;

use super::Catalog;
use super::halt::Halt;
use crate::error::{Error, ErrorCode, Result};
use crate::hypercore::static_core::Progress;

/// What is verified.
#[derive(Clone, Default)]
pub struct VerifyOptions {
    /// Also the feeds of peers, as far as they are here.
    pub peers: bool,
    /// Told how many bytes of the feed that is read now are done, of how many.
    pub progress: Option<Progress>,
}

/// What [`Catalog::verify`] has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Whether the own feed and the database are whole.
    pub ok: bool,
    /// How many entries of the own feed are as they were signed.
    pub entries: u64,
    /// The entries of the own feed that are not, the first hundred.
    pub damaged: Vec<u64>,
    /// What is wrong, in words.
    pub problems: Vec<String>,
    /// The peers whose feeds were damaged here, z32. The damage is fetched again.
    pub refetched: Vec<String>,
}

/// How many damaged entries are named.
const MAX_NAMED: usize = 100;

impl Catalog {
    /// Reads the own feed again, every entry against the tree and the tree against the signature, and
    /// lets SQLite check the database; if asked for, also the feeds of peers.
    ///
    /// When the own feed or the database is damaged, nothing is published any more, also after a
    /// restart; reading goes on, and [`Catalog::trouble`] says what to do. Damaged entries of peers are
    /// forgotten and fetched again. Dropping the future ends the work soon.
    pub async fn verify(&self, options: VerifyOptions) -> Result<Verification> {
        let mut found = Verification::default();
        let own = &self.inner.own;
        match &own.current().live {
            None => found.problems.extend(self.trouble()),
            Some(live) => match live.core.check(options.progress.clone()).await {
                Ok(checked) => {
                    found.entries = checked.good;
                    if !checked.bad.is_empty() {
                        let count = checked.bad.len();
                        found.problems.push(format!("{count} entries are not what was signed"));
                    } else if !checked.whole && *own.halt.borrow() != Some(Halt::Restored) {
                        found.problems.push("entries are missing".to_owned());
                    }
                    found.damaged = checked.bad.into_iter().take(MAX_NAMED).collect();
                }
                Err(error) => {
                    let error = Error::from(error);
                    if error.code != ErrorCode::Corrupt {
                        return Err(error);
                    }
                    found.problems.push(error.message);
                }
            },
        }
        let database = self.inner.options.database.check_integrity().await?;
        found.problems.extend(database.iter().map(|problem| format!("the database: {problem}")));
        found.ok = found.problems.is_empty();
        if !found.ok {
            let halt = Halt::Damaged(found.problems.join("; "));
            if own.stop_publishing(halt).await {
                let message = self.trouble().unwrap_or_default();
                tracing::error!(message, "the catalog is damaged");
                self.inner.options.tell(false, message);
            }
        }
        if options.peers {
            for (peer, damaged) in
                self.inner.peers.verify(&self.inner.options, options.progress).await?
            {
                if damaged {
                    found.refetched.push(peer.to_z32());
                }
            }
        }
        Ok(found)
    }
}
