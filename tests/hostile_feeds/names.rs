//! Peers that name as their feed what is another's: a peer's feed, a book's core, this server's own feed.
//! Nothing of anybody's is opened, held, delayed or deleted by that.

use alex_p2p::catalog::forget_in;
use alex_p2p::crypto::{Hash, KeyPair, PublicKey, discovery_key};
use alex_p2p::hypercore::replicator::{CoreHandle, EventKind, Policy as CorePolicy, Replicator};
use alex_p2p::hypercore::{Core, CreateOptions, Manifest, MemoryStorage, OpenOptions, StaticTree};
use alex_p2p::protomux::Protomux;
use alex_p2p::store::StoreError;
use alex_p2p::transfer::{Policy, State};
use tokio::sync::mpsc;

use crate::support::{
    Disk, Server, approve, connect, connect_slow, connect_stranger, soon, until, until_state,
};
use crate::{book, shows};

const MIB: usize = 1 << 20;

/// An approved peer that has nothing but hypercore.
struct Claimant {
    keys: KeyPair,
    mux: Protomux,
    replicator: Replicator,
}

impl Claimant {
    async fn connect(server: &Server) -> Self {
        let keys = KeyPair::generate();
        let mux = connect_stranger(server, &keys).await;
        Self { keys, mux, replicator: Replicator::new() }
    }

    fn key(&self) -> PublicKey {
        self.keys.public_key()
    }

    /// Names a feed, and waits until the server asks for it.
    async fn claim(&self, server: &Server, key: Hash) {
        let mut opens = self.opens();
        server.catalog.set_feed(self.key(), key).await.unwrap();
        opened(&mut opens, &key).await;
    }

    /// What the server opens, from now on.
    fn opens(&self) -> mpsc::UnboundedReceiver<Vec<u8>> {
        let (sender, opens) = mpsc::unbounded_channel();
        let handler =
            move |open: alex_p2p::protomux::RemoteOpen| drop(sender.send(open.id.clone()));
        self.mux.on_open("hypercore/alpha", std::sync::Arc::new(handler));
        opens
    }

    /// Serves a log from now on.
    fn serve(&self, core: &Core) -> CoreHandle {
        self.replicator.attach(&self.mux);
        self.replicator.add(core.clone(), CorePolicy::serve())
    }

    /// A feed of its own.
    async fn feed(&self, namespace: u8, entries: &[String]) -> Core {
        let manifest = Manifest::single_in(self.key(), [namespace; 32]);
        let writer = Some(self.keys.clone());
        let options = CreateOptions { manifest, writer, compat: false };
        let core = Core::create(&MemoryStorage::new(), options).unwrap();
        core.append(entries.iter().map(|entry| entry.clone().into()).collect()).await.unwrap();
        core
    }
}

async fn opened(opens: &mut mpsc::UnboundedReceiver<Vec<u8>>, key: &Hash) {
    let wanted = discovery_key(key).to_vec();
    soon(async { while opens.recv().await.unwrap() != wanted {} }).await;
}

fn added(id: &str) -> String {
    format!(r#"{{"type":"book-added","id":"{id}","title":"Title {id}"}}"#)
}

fn moved(key: Hash) -> String {
    let key = PublicKey::from_bytes(key).to_z32();
    format!(r#"{{"type":"feed-moved","key":"{key}"}}"#)
}

async fn server() -> (Disk, Server) {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    (disk, server)
}

/// A server that publishes one book of a size that is kept in storage, and its core's key.
async fn with_book(size: usize) -> (Disk, Server, Hash) {
    let (disk, server) = server().await;
    let file = disk.file("original.epub", size, 7);
    server.publish("book", &file).await;
    let tree = StaticTree::build(&file, None).await.unwrap();
    (disk, server, tree.key)
}

/// The keys of what is stored.
fn stored(server: &Server) -> Vec<Hash> {
    let read = |c: &rusqlite::Connection| {
        let mut statement = c.prepare("SELECT key FROM cores")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        rows.collect::<Result<_, _>>().map_err(StoreError::from)
    };
    server.database.read(read).unwrap()
}

#[tokio::test]
async fn a_feed_is_its_servers_whoever_named_it_first_and_has_it() {
    let (_disk, server) = server().await;
    let (_friends, friend) = self::server().await;
    friend.catalog.publish(vec![book(1)]).await.unwrap();
    let feed = friend.catalog.key();
    // The claimant has the feed, as every peer of the friend has.
    let claimant = Claimant::connect(&server).await;
    let copy = Core::open(&MemoryStorage::new(), feed, OpenOptions::default()).unwrap();
    {
        let replicator = Replicator::new();
        replicator.attach(&connect_stranger(&friend, &claimant.keys).await);
        let handle = replicator.add(copy.clone(), CorePolicy::fetch());
        let mut changes = handle.core().subscribe();
        soon(changes.wait_for(|now| now.contiguous_length == 1)).await.unwrap();
        handle.close();
    }
    let mut events = claimant.replicator.events();
    server.catalog.set_feed(claimant.key(), feed).await.unwrap();
    claimant.serve(&copy);
    soon(async { while !matches!(events.recv().await.unwrap().kind, EventKind::PeerLeft) {} })
        .await;
    assert_eq!(server.catalog.of(claimant.key()).status().unwrap(), None);

    claimant.claim(&server, [9; 32]).await;
    server.catalog.set_feed(claimant.key(), feed).await.unwrap();
    let _friendship = connect(&friend, &server).await;
    shows(&server, friend.key, |status| status.books == 1).await;
    friend.catalog.publish(vec![book(2)]).await.unwrap();
    shows(&server, friend.key, |status| status.books == 2).await;
    assert_eq!(server.catalog.of(claimant.key()).status().unwrap(), None);
}

#[tokio::test]
async fn a_claim_of_this_servers_own_feed_changes_nothing() {
    let (_disk, server) = server().await;
    let claimant = Claimant::connect(&server).await;
    server.catalog.publish(vec![book(1)]).await.unwrap();
    server.catalog.set_feed(claimant.key(), server.catalog.key()).await.unwrap();
    server.catalog.publish(vec![book(2)]).await.unwrap();
    assert_eq!(server.catalog.of(claimant.key()).status().unwrap(), None);
    let (_friends, friend) = self::server().await;
    let _friendship = connect(&friend, &server).await;
    shows(&friend, server.key, |status| status.books == 2).await;
}

#[tokio::test]
async fn a_claimed_key_of_a_book_keeps_nobody_from_reading_it() {
    let (_disk, server, key) = with_book(MIB).await;
    let claimant = Claimant::connect(&server).await;
    claimant.claim(&server, key).await;
    let (_readers, reader) = self::server().await;
    let _connection = connect(&server, &reader).await;
    shows(&reader, server.key, |status| status.books == 1).await;
    let transfer = reader.request(&server, "book").await;
    assert_eq!(until_state(&transfer, State::Completed).await.progress.bytes, MIB as u64);
}

#[tokio::test]
async fn a_claimed_key_of_a_book_does_not_delay_its_download() {
    let (_senders, sender, key) = with_book(MIB).await;
    let (_disk, server) = server().await;
    let claimant = Claimant::connect(&server).await;
    claimant.claim(&server, key).await;
    let _connection = connect(&sender, &server).await;
    shows(&server, sender.key, |status| status.books == 1).await;
    let transfer = server.request(&sender, "book").await;
    assert_eq!(until_state(&transfer, State::Completed).await.progress.bytes, MIB as u64);
}

#[tokio::test]
async fn what_is_here_of_a_book_stays_when_a_feed_leads_to_its_core_and_away_again() {
    let (_senders, sender, key) = with_book(16 * MIB).await;
    let (disk, server) = server().await;
    let connection = connect_slow(&sender, &server).await;
    shows(&server, sender.key, |status| status.books == 1).await;
    let transfer = server.request(&sender, "book").await;
    until(&transfer, |info| info.progress.bytes > MIB as u64).await;
    transfer.pause().await.unwrap();
    until_state(&transfer, State::Paused).await;
    drop(connection);
    assert!(stored(&server).contains(&key));

    let claimant = Claimant::connect(&server).await;
    let mut opens = claimant.opens();
    let old = claimant.feed(1, &[added("a"), moved(key)]).await;
    server.catalog.set_feed(claimant.key(), *old.key()).await.unwrap();
    opened(&mut opens, old.key()).await;
    let handle = claimant.serve(&old);
    shows(&server, claimant.key(), |status| status.replayed == 2).await;
    let mut opens = claimant.opens();
    old.append(vec![moved([5; 32]).into()]).await.unwrap();
    // It looks at that one now, and has let go of the other.
    opened(&mut opens, &[5; 32]).await;
    handle.close();
    server.catalog.set_feed(claimant.key(), key).await.unwrap();
    server.catalog.forget(claimant.key()).await.unwrap();
    assert!(stored(&server).contains(&key));
    // Nor does a start delete it.
    server.stop().await;
    let server = Server::start(&disk, Policy::AutoAccept).await;
    assert!(stored(&server).contains(&key));
}

#[tokio::test]
async fn one_peers_claim_does_not_stop_anothers_move() {
    let (_disk, server) = server().await;
    let (honest, claimant) = (Claimant::connect(&server).await, Claimant::connect(&server).await);
    let new = honest.feed(2, &[added("a"), added("b"), added("c")]).await;
    let old = honest.feed(1, &[added("a"), moved(*new.key())]).await;
    honest.serve(&old);
    server.catalog.set_feed(honest.key(), *old.key()).await.unwrap();
    shows(&server, honest.key(), |status| status.books == 1).await;
    claimant.claim(&server, *new.key()).await;
    honest.serve(&new);
    shows(&server, honest.key(), |status| status.books == 3).await;
    assert_eq!(server.catalog.of(claimant.key()).status().unwrap(), None);
}

#[tokio::test]
async fn a_feed_that_took_the_place_of_another_is_all_that_is_stored_of_a_peer() {
    let (_disk, server) = server().await;
    let claimant = Claimant::connect(&server).await;
    let before = stored(&server).len();
    for namespace in 1..=4 {
        let feed = claimant.feed(namespace, &[added(&format!("b{namespace}"))]).await;
        server.catalog.set_feed(claimant.key(), *feed.key()).await.unwrap();
        claimant.serve(&feed);
        let key = PublicKey::from_bytes(*feed.key()).to_z32();
        shows(&server, claimant.key(), |status| status.feed_key == key && status.books == 1).await;
        assert_eq!(stored(&server).len(), before + 1);
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_removed_peer_after_a_crash_and_nothing_brings_it_back() {
    let (_friends, friend) = server().await;
    friend.catalog.publish(vec![book(1)]).await.unwrap();
    let (disk, server) = self::server().await;
    let connection = connect(&friend, &server).await;
    shows(&server, friend.key, |status| status.books == 1).await;
    let feed = friend.catalog.key();
    assert!(stored(&server).contains(&feed));
    // The peer is removed, and the process ends before anything else.
    let peer = friend.key;
    let remove = move |t: &rusqlite::Transaction<'_>| {
        t.execute("DELETE FROM peers WHERE public_key = ?1", [peer.to_z32()])?;
        forget_in(t, &peer)
    };
    server.database.write(remove).await.unwrap();
    drop(connection);
    server.stop().await;
    let server = Server::start(&disk, Policy::AutoAccept).await;
    assert_eq!(server.catalog.of(friend.key).status().unwrap(), None);
    assert!(!stored(&server).contains(&feed));

    // A claim that it made before it was removed is proven, and not followed.
    let late = Claimant::connect(&server).await;
    let core = late.feed(1, &[added("a")]).await;
    let gone = late.key();
    late.claim(&server, *core.key()).await;
    server
        .database
        .write(move |t| {
            t.execute("DELETE FROM peers WHERE public_key = ?1", [gone.to_z32()])?;
            forget_in(t, &gone)
        })
        .await
        .unwrap();
    let mut events = late.replicator.events();
    late.serve(&core);
    soon(async { while !matches!(events.recv().await.unwrap().kind, EventKind::PeerLeft) {} })
        .await;
    // Its work has come to its end when this has.
    server.catalog.forget(gone).await.unwrap();
    assert_eq!(server.catalog.of(gone).status().unwrap(), None);
    assert!(!stored(&server).contains(core.key()));
}

#[tokio::test]
async fn what_an_earlier_version_stored_for_a_peer_that_did_not_sign_it_is_dropped() {
    let (_friends, friend) = server().await;
    friend.catalog.publish(vec![book(1)]).await.unwrap();
    let (disk, server) = self::server().await;
    let connection = connect(&friend, &server).await;
    shows(&server, friend.key, |status| status.books == 1).await;
    let thief = KeyPair::generate().public_key();
    approve(&server.database, &thief).await.unwrap();
    let holder = thief;
    let steal = move |t: &rusqlite::Transaction<'_>| {
        let server = holder.as_bytes();
        t.execute(
            "UPDATE catalog_feeds SET server = ?1 WHERE feed_key IN (SELECT feed_key FROM \
                   catalog_feeds ORDER BY number DESC LIMIT 1)",
            [server],
        )?;
        Ok::<_, StoreError>(())
    };
    server.database.write(steal).await.unwrap();
    drop(connection);
    server.stop().await;
    let server = Server::start(&disk, Policy::AutoAccept).await;
    assert_eq!(server.catalog.of(thief).status().unwrap(), None);
    let _connection = connect(&friend, &server).await;
    shows(&server, friend.key, |status| status.books == 1).await;
}
