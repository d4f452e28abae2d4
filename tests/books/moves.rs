//! A catalog that goes on in another feed: its last entry says so.

use alex_p2p::catalog::{Book, BookEntry};
use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::hypercore::replicator::{EventKind as CoreEvent, Policy as CorePolicy, Replicator};
use alex_p2p::hypercore::{Core, CreateOptions, Manifest, MemoryStorage};
use alex_p2p::protomux::Protomux;
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
    let mut told = replicator.events();
    soon(async {
        loop {
            let event = told.recv().await.unwrap();
            if event.key == *foreign.key() && matches!(event.kind, CoreEvent::PeerLeft) {
                return;
            }
        }
    })
    .await;
    let status = theirs.status().unwrap().unwrap();
    assert_eq!(status.feed_key, PublicKey::from_bytes(*old.key()).to_z32());
    assert!(theirs.get("stolen").unwrap().is_none());
    drop(mux);
}

async fn eventually(done: impl Fn() -> bool) {
    soon(async {
        while !done() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}
