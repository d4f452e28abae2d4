//! The node: opens every layer over one data directory, joins them, and closes them again.

mod advice;
mod backup;
mod decisions;
mod learning;
mod network;
mod options;
mod status;
mod surroundings;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use backup::{Backup, BackupOptions, Restored};
pub use options::{Limits, NodeOptions, RelaySettings};
pub use status::{Layer, Status};

use decisions::Decisions;
use learning::Learner;
use network::{Network, Online, Place};

use crate::catalog::{Catalog, CatalogOptions};
use crate::crypto::PublicKey;
use crate::discovery::DiscoveryOptions;
use crate::error::{Error, Result};
use crate::events::{EventKind, Events};
use crate::hypercore::Storage;
use crate::hypercore::replicator::Replicator;
use crate::hyperdht::HyperDht;
use crate::identity::{DataDirLock, Identity};
use crate::peers::{Connections, Peers, check_nickname};
use crate::store::{CoreStore, Database};
use crate::tasks::Spawn;
use crate::transfer::message::{Hello, VERSION};
use crate::transfer::{PeerRules, Policy, TransferOptions, Transfers};

/// One running endpoint over one data directory. Clones share it.
///
/// Dropping the last clone stops the network at some later moment; [`Node::close`] ends it in order.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    data_dir: PathBuf,
    identity: Identity,
    database: Database,
    events: Events,
    peers: Peers,
    catalog: Catalog,
    transfers: Transfers,
    place: Place,
    discovery: DiscoveryOptions,
    /// The peers that connections may go over.
    relays: Vec<PublicKey>,
    tasks: Tasks,
    is_closing: AtomicBool,
    closed: OnceCell<()>,
    /// Given up last: another process may open the directory then.
    lock: std::sync::Mutex<Option<DataDirLock>>,
}

/// What runs beside the layers.
#[derive(Default)]
struct Tasks {
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Node {
    /// Opens the node: makes the data directory and the identity at the first start, takes up what an
    /// earlier run left, and goes online in the background. Needs a tokio runtime. Not cancel safe: a
    /// cancelled call may leave the directory locked until the process ends.
    ///
    /// # Errors
    ///
    /// `ERR_LOCKED` when another process has the directory; `ERR_INVALID_ARGUMENT` for a bad option;
    /// `ERR_CORRUPT` when the key pair, the database or the own feed is damaged; `ERR_NETWORK` when no
    /// socket can be bound; `ERR_IO`, `ERR_DISK_FULL`.
    pub async fn open(options: NodeOptions) -> Result<Self> {
        let nickname = options.nickname.as_deref().map(check_nickname).transpose()?.flatten();
        // Whatever becomes of the working directory.
        let mut options = options;
        options.data_dir = std::path::absolute(&options.data_dir)?;
        options.books_dir = options.books_dir.map(std::path::absolute).transpose()?;
        make_private(&options.data_dir)?;
        let lock = DataDirLock::acquire(&options.data_dir)?;
        let identity = Identity::open(&options.data_dir)?;
        let dht_options = options.dht(&identity)?;
        let relays = options.relays()?;
        let database = Database::open(&options.data_dir.join("p2p.db"))?;
        let events = Events::open(&database).await?;
        let peers = Peers::open(&database, identity.public_key(), &events).await?;
        let storage: Arc<dyn Storage> = Arc::new(CoreStore::new(database.clone()));
        let replicator = options
            .limits
            .upload_bytes_per_second
            .map_or_else(Replicator::new, Replicator::with_upload_limit);
        let catalog = Catalog::open(CatalogOptions {
            database: database.clone(),
            storage: Arc::clone(&storage),
            replicator: replicator.clone(),
            key_pair: identity.key_pair().clone(),
            events: events.clone(),
            share_feeds: options.share_feeds,
        })
        .await?;
        let tasks = Tasks::default();
        let learner = Learner::new(&peers, &catalog, &events, &tasks.tracker, &tasks.cancel);
        let learner = Arc::new(learner);
        let hello = {
            let catalog = catalog.clone();
            move || Hello {
                version: VERSION,
                nickname: nickname.clone(),
                feed_key: Some(catalog.key()),
                features: Vec::new(),
            }
        };
        let transfers = Transfers::open(TransferOptions {
            database: database.clone(),
            storage,
            replicator: replicator.clone(),
            library: Arc::new(catalog.clone()),
            peers: Arc::new(Rules { peers: peers.clone(), policy: options.policy }),
            events: events.clone(),
            data_dir: options.data_dir.clone(),
            books_dir: options.books_dir.clone().unwrap_or_else(|| options.data_dir.join("books")),
            limits: options.limits.into(),
            hello: Arc::new(hello),
            on_hello: Arc::new(move |peer, hello| learner.hear(peer, hello)),
        })
        .await?;
        peers.on_decision(Arc::new(Decisions {
            catalog: catalog.clone(),
            transfers: transfers.clone(),
        }));
        catalog.on_change(transfers.readers());
        let place = Place::open(Network {
            options: dht_options,
            discovery: options.discovery,
            identity: identity.clone(),
            peers: peers.clone(),
            database: database.clone(),
            relay: options.relay.serve.then(|| options.relay.serving()),
            relays: relays.clone(),
            attach: {
                let transfers = transfers.clone();
                Arc::new(move |connection| {
                    replicator.attach(&connection.mux);
                    transfers.attach(&connection.mux);
                })
            },
        })?;
        tracing::info!(key = identity.public_key().short(), "the node is open");
        let node = Self {
            inner: Arc::new(Inner {
                data_dir: options.data_dir,
                identity,
                database,
                events,
                peers,
                catalog,
                transfers,
                place,
                discovery: options.discovery,
                relays,
                tasks,
                is_closing: AtomicBool::new(false),
                closed: OnceCell::new(),
                lock: std::sync::Mutex::new(Some(lock)),
            }),
        };
        node.say_hello_anew();
        Ok(node)
    }

    /// Lets every peer hear of a new feed: a connection's hello is said once, so it is made anew.
    fn say_hello_anew(&self) {
        let mut keys = self.catalog().keys();
        let (cancel, node) = (self.inner.tasks.cancel.clone(), Arc::downgrade(&self.inner));
        self.inner.tasks.tracker.spawn_task(async move {
            while let Some(Ok(())) = cancel.run_until_cancelled(keys.changed()).await {
                let Some(inner) = node.upgrade() else { return };
                let Some(online) = inner.place.online() else { continue };
                for connection in online.connections.list() {
                    connection.mux.close();
                    online.connections.wake(&connection.key);
                }
            }
        });
    }

    /// Who this server is. Also after the node was closed.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The other servers.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    /// The books on offer, here and at the peers.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    /// The books on their way.
    #[must_use]
    pub fn transfers(&self) -> &Transfers {
        &self.inner.transfers
    }

    /// What happens.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.inner.events
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.inner.data_dir
    }

    /// The live connections; `None` while the node is suspended or closed.
    #[must_use]
    pub fn connections(&self) -> Option<Connections> {
        self.online().map(|online| online.connections)
    }

    /// The DHT node; `None` while the node is suspended or closed.
    #[must_use]
    pub fn dht(&self) -> Option<HyperDht> {
        self.online().map(|online| online.dht)
    }

    fn online(&self) -> Option<Online> {
        self.inner.place.online()
    }

    /// Goes off the network, before the machine sleeps or while there is nothing to do: peers hear that
    /// this server goes, and nothing is sent or received until [`Node::resume`]. Everything that needs
    /// no network goes on working. Idempotent. Once begun, it comes to its end also when the caller goes.
    ///
    /// # Errors
    ///
    /// `ERR_CLOSED` after [`Node::close`].
    pub async fn suspend(&self) -> Result<()> {
        self.check_open()?;
        let node = self.clone();
        let suspending = crate::tasks::spawn(async move {
            if node.inner.place.suspend().await {
                node.tell_network(false, "the node is suspended");
            }
        });
        suspending.await.map_err(|_| Error::closed())
    }

    /// Goes back on the network, on the same port if that is free, and dials everybody at once.
    /// Idempotent.
    ///
    /// # Errors
    ///
    /// `ERR_NETWORK` when no socket can be bound; the node is suspended still. `ERR_CLOSED` after
    /// [`Node::close`].
    pub async fn resume(&self) -> Result<()> {
        self.check_open()?;
        if self.inner.place.resume().await? {
            self.tell_network(true, "the node is on the network again");
        }
        self.check_open()
    }

    fn tell_network(&self, ok: bool, message: &str) {
        tracing::info!(message);
        let (layer, message) = ("network".to_owned(), message.to_owned());
        self.inner.events.emit(EventKind::Status { layer, ok, message });
    }

    /// What works and what does not, for a person.
    ///
    /// # Errors
    ///
    /// `ERR_CLOSED` after [`Node::close`].
    pub fn status(&self) -> Result<Status> {
        self.check_open()?;
        Ok(status::of(self))
    }

    /// Fails with `ERR_CLOSED` once the node is closing.
    pub fn check_open(&self) -> Result<()> {
        if self.inner.is_closing.load(Ordering::Acquire) { Err(Error::closed()) } else { Ok(()) }
    }

    /// Closes everything in order: peers hear that this server goes, transfers stop where they are and
    /// go on at the next start, and all that was acknowledged is on disk. Calls in flight end with
    /// `ERR_CLOSED`. Idempotent; every caller returns when it is done. Cancelled, it goes on when it is
    /// called again.
    pub async fn close(&self) {
        self.inner.is_closing.store(true, Ordering::Release);
        self.inner.closed.get_or_init(|| self.inner.close()).await;
    }
}

impl Inner {
    async fn close(&self) {
        self.place.close().await;
        self.transfers.close().await;
        self.tasks.close().await;
        self.catalog.close().await;
        self.peers.close().await;
        self.events.close();
        let database = self.database.clone();
        if crate::tasks::blocking(move || database.close()).await.is_err() {
            tracing::error!("the database did not close");
        }
        crate::sync::lock(&self.lock).take();
        tracing::info!(key = self.identity.public_key().short(), "the node is closed");
    }
}

impl Tasks {
    async fn close(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// What transfers ask about peers.
struct Rules {
    peers: Peers,
    policy: Policy,
}

impl PeerRules for Rules {
    fn is_approved(&self, peer: &PublicKey) -> bool {
        self.peers.is_approved(peer)
    }

    fn policy(&self, peer: &PublicKey) -> Policy {
        self.peers.policy(peer).unwrap_or(self.policy)
    }
}

/// Makes the folder, for its owner only.
fn make_private(folder: &Path) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|error| {
        let what = format!("the data directory {} cannot be made: {error}", folder.display());
        Error::of_disk(Error::from(error).code, what)
    })
}
