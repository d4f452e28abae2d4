//! A catalog that goes on in another feed: its last entry says so.

use std::sync::Arc;

use alex_p2p::catalog::{Book, BookEntry};
use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::hypercore::replicator::{
    Event, EventKind as CoreEvent, Policy as CorePolicy, Replicator,
};
use alex_p2p::hypercore::{Core, CreateOptions, Manifest, MemoryStorage};
use alex_p2p::protomux::Protomux;
use alex_p2p::store::StoreError;
use alex_p2p::transfer::Policy;

use crate::support::{Disk, Server, connect, connect_stranger, soon};

fn book(number: usize) -> Book {
    let (id, title) = (format!("b{number}"), format!("Book number {number}"));
    Book { entry: BookEntry { id, title, ..BookEntry::default() }, source: None }
}

/// The hello that the servers of these tests say names the first feed, whatever comes later.
#[tokio::test]
async fn the_last_entry_of_a_feed_that_was_left_leads_to_the_new_one() {
    let (a_disk, b_disk) = (Disk::new(), Disk::new());
    let a = Server::start(&a_disk, Policy::AutoAccept).await;
    let b = Server::start(&b_disk, Policy::AutoAccept).await;
    a.catalog.publish((0..10).map(book).collect()).await.unwrap();
    let _connection = connect(&a, &b).await;
    let theirs = b.catalog.of(a.key);
    eventually(|| theirs.status().unwrap().is_some_and(|status| status.books == 10)).await;
    let key = a.catalog.start_new_feed().await.unwrap();
    a.catalog.publish(vec![book(77)]).await.unwrap();
    eventually(|| theirs.get("b77").unwrap().is_some()).await;
    let status = theirs.status().unwrap().unwrap();
    assert_eq!(status.feed_key, PublicKey::from_bytes(key).to_z32());
    assert_eq!((status.books, status.skipped), (11, 0));
}

/// Serves these logs as the server with these keys, who says nothing else.
async fn serve(server: &Server, keys: &KeyPair, cores: &[&Core]) -> (Protomux, Replicator) {
    let mux = connect_stranger(server, keys).await;
    let replicator = Replicator::new();
    replicator.attach(&mux);
    for core in cores {
        replicator.add((*core).clone(), CorePolicy::serve());
    }
    (mux, replicator)
}

async fn log(signer: &KeyPair, namespace: u8, entries: Vec<String>) -> Core {
    let manifest = Manifest::single_in(signer.public_key(), [namespace; 32]);
    let options = CreateOptions { manifest, writer: Some(signer.clone()), compat: false };
    let core = Core::create(&MemoryStorage::new(), options).unwrap();
    core.append(entries.into_iter().map(Into::into).collect()).await.unwrap();
    core
}

fn added(id: &str) -> String {
    format!(r#"{{"type":"book-added","id":"{id}","title":"Title {id}"}}"#)
}

fn moved(to: &Core) -> String {
    let key = PublicKey::from_bytes(*to.key()).to_z32();
    format!(r#"{{"type":"feed-moved","key":"{key}"}}"#)
}

#[tokio::test]
async fn a_catalog_is_shown_until_the_feed_it_goes_on_in_is_here() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let keys = KeyPair::generate();
    let new = log(&keys, 2, vec![added("a"), added("b"), added("c")]).await;
    let old = log(&keys, 1, vec![added("a"), moved(&new)]).await;
    let connection = serve(&server, &keys, &[&old]).await;
    server.catalog.set_feed(keys.public_key(), *old.key()).await.unwrap();
    let theirs = server.catalog.of(keys.public_key());
    eventually(|| theirs.status().unwrap().is_some_and(|status| status.books == 1)).await;
    // Also after a restart, with nobody there.
    drop(connection);
    server.stop().await;
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let theirs = server.catalog.of(keys.public_key());
    assert_eq!(theirs.status().unwrap().unwrap().books, 1);
    let _connection = serve(&server, &keys, &[&new]).await;
    eventually(|| theirs.status().unwrap().is_some_and(|status| status.books == 3)).await;
}

#[tokio::test]
async fn a_feed_leads_to_no_feed_that_another_server_signs() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let (keys, others) = (KeyPair::generate(), KeyPair::generate());
    let foreign = log(&others, 2, vec![added("stolen")]).await;
    let old = log(&keys, 1, vec![added("a"), moved(&foreign)]).await;
    let (mux, replicator) = serve(&server, &keys, &[&old, &foreign]).await;
    server.catalog.set_feed(keys.public_key(), *old.key()).await.unwrap();
    let theirs = server.catalog.of(keys.public_key());
    // It was fetched far enough to see whose it is, and let go.
    told(&mut replicator.events(), &foreign, |kind| matches!(kind, CoreEvent::PeerLeft)).await;
    let status = theirs.status().unwrap().unwrap();
    assert_eq!(status.feed_key, PublicKey::from_bytes(*old.key()).to_z32());
    assert!(theirs.get("stolen").unwrap().is_none());
    drop(mux);
}

/// Waits until the replicator says that of this core.
async fn told(
    events: &mut tokio::sync::broadcast::Receiver<Event>,
    core: &Core,
    wanted: impl Fn(&CoreEvent) -> bool,
) {
    soon(async {
        loop {
            let event = events.recv().await.unwrap();
            if event.key == *core.key() && wanted(&event.kind) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_feed_that_names_another_new_feed_lets_go_of_the_one_before() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let keys = KeyPair::generate();
    let first = log(&keys, 2, vec![added("never")]).await;
    let second = log(&keys, 3, vec![added("x"), added("y")]).await;
    let old = log(&keys, 1, vec![added("a"), moved(&first)]).await;
    let (_mux, replicator) = serve(&server, &keys, &[&old, &second]).await;
    replicator
        .add(first.clone(), CorePolicy { upload: Arc::new(|_| false), ..CorePolicy::serve() });
    let mut events = replicator.events();
    server.catalog.set_feed(keys.public_key(), *old.key()).await.unwrap();
    told(&mut events, &first, |kind| matches!(kind, CoreEvent::PeerJoined)).await;
    old.append(vec![moved(&second).into()]).await.unwrap();
    told(&mut events, &first, |kind| matches!(kind, CoreEvent::PeerLeft)).await;
    let theirs = server.catalog.of(keys.public_key());
    eventually(|| theirs.status().unwrap().is_some_and(|status| status.books == 2)).await;
    let key = PublicKey::from_bytes(*second.key()).to_z32();
    assert_eq!(theirs.status().unwrap().unwrap().feed_key, key);
}

#[tokio::test]
async fn a_new_feed_that_another_server_named_before_is_fetched_nevertheless() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let (keys, others) = (KeyPair::generate(), KeyPair::generate());
    let new = log(&keys, 2, vec![added("a"), added("b")]).await;
    let foreign = log(&others, 1, vec![added("z"), moved(&new)]).await;
    let _theirs = serve(&server, &others, &[&foreign]).await;
    server.catalog.set_feed(others.public_key(), *foreign.key()).await.unwrap();
    let other = server.catalog.of(others.public_key());
    eventually(|| other.status().unwrap().is_some_and(|status| status.books == 1)).await;
    let old = log(&keys, 1, vec![added("a"), moved(&new)]).await;
    let _mine = serve(&server, &keys, &[&old, &new]).await;
    server.catalog.set_feed(keys.public_key(), *old.key()).await.unwrap();
    let theirs = server.catalog.of(keys.public_key());
    eventually(|| theirs.status().unwrap().is_some_and(|status| status.books == 2)).await;
    assert_eq!(other.status().unwrap().unwrap().books, 1);
}

#[tokio::test]
async fn a_new_feed_that_is_damaged_here_is_fetched_anew() {
    let disk = Disk::new();
    let server = Server::start(&disk, Policy::AutoAccept).await;
    let keys = KeyPair::generate();
    let new = log(&keys, 2, vec![added("a"), added("b")]).await;
    let old = log(&keys, 1, vec![added("a"), moved(&new)]).await;
    let (discovery_key, key) = (*new.discovery_key(), *new.key());
    // It says that it has seven blocks, and has no tree.
    server
        .database
        .write(move |transaction| {
            transaction.execute(
                "INSERT INTO cores (discovery_key, key, fork, length, byte_length) \
                 VALUES (?1, ?2, 0, 7, 70)",
                (discovery_key, key),
            )?;
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let _served = serve(&server, &keys, &[&old, &new]).await;
    server.catalog.set_feed(keys.public_key(), *old.key()).await.unwrap();
    let theirs = server.catalog.of(keys.public_key());
    eventually(|| theirs.status().unwrap().is_some_and(|status| status.books == 2)).await;
}

async fn eventually(done: impl Fn() -> bool) {
    soon(async {
        while !done() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}
