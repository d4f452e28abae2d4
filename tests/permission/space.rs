//! Disks that several books would share: what one has been promised, no other counts on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alex_p2p::catalog::Book;
use alex_p2p::crypto::KeyPair;
use alex_p2p::error::ErrorCode;
use alex_p2p::hypercore::replicator::Policy as CorePolicy;
use alex_p2p::hypercore::{Core, MemoryStorage, StaticTree};
use alex_p2p::node::{Node, NodeOptions};
use alex_p2p::transfer::{BookRequest, BookSource, Policy, Provided, State};
use serde_json::{Value, json};

use crate::friend::{Server, noise, soon};

const MB: usize = 1 << 20;

/// A file system of its own, as large as it says.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, and a word, where none can be mounted.
    fn mount(at: &Path, size: usize) -> Option<Self> {
        Self::mount_as(at, "tmpfs", &format!("size={size}"))
    }

    fn mount_as(at: &Path, kind: &str, options: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", kind, "-o", options, kind]).arg(at);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(at.to_owned()));
        }
        println!("skipped: mounting a {kind} takes root");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A server whose data directory is on a disk of its own.
async fn server_on(size: usize) -> Option<(Server, SmallDisk)> {
    let mut server = Server::start(Policy::AutoAccept).await;
    let data = server.dir.path().join("small");
    let Some(disk) = SmallDisk::mount(&data, size) else {
        server.close().await;
        return None;
    };
    server.node.close().await;
    let bootstrap = server.testnet.bootstrap().iter().map(ToString::to_string).collect();
    let options = NodeOptions {
        bootstrap: Some(bootstrap),
        host: Some("127.0.0.1".into()),
        port: Some(0),
        policy: Policy::AutoAccept,
        ..NodeOptions::new(data.join("data"))
    };
    server.node = Node::open(options).await.unwrap();
    Some((server, disk))
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_that_come_together_do_not_share_the_same_room() {
    let Some((server, disk)) = server_on(40 * MB).await else { return };
    let keys = KeyPair::generate();
    server.add(&keys).await;
    let friend = server.connect(&keys).await;
    let mut transfers = Vec::new();
    for n in 0..4u64 {
        let path = server.dir.path().join(format!("{n}.epub"));
        std::fs::write(&path, noise(n + 1, 15 * MB)).unwrap();
        let tree = StaticTree::build(&path, None).await.unwrap();
        let (peer, book_id) = (keys.public_key().to_z32(), n.to_string());
        let request = BookRequest { peer, book_id, save_to: None };
        transfers.push((server.node.transfers().request(request).await.unwrap(), path, tree));
    }
    // All are granted before the first byte is there to be read.
    for _ in &transfers {
        let message = soon(friend.channel.recv()).await.unwrap();
        let asked: Value = serde_json::from_slice(&message.data).unwrap();
        let number: usize = asked["bookId"].as_str().unwrap().parse().unwrap();
        let tree = &transfers[number].2;
        let hash: String = tree.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let reply = json!({
            "id": asked["id"], "status": "granted", "key": z32::encode(&tree.key), "hash": hash,
            "length": tree.length, "byteLength": tree.byte_length,
        });
        friend.send(1, reply).await;
    }
    let refused = || {
        let info = transfers.iter().map(|(transfer, ..)| transfer.info().unwrap());
        info.filter(|info| info.state == State::Failed).collect::<Vec<_>>()
    };
    let mut events = server.node.events().subscribe(None);
    soon(async {
        while refused().len() < 2 {
            events.next().await;
        }
    })
    .await;
    for info in refused() {
        assert_eq!(info.error.as_deref(), Some(ErrorCode::DiskFull.as_str()), "{info:?}");
    }
    // The two that have their room get there.
    for (_, _, tree) in &transfers {
        let core = Core::open_static(&MemoryStorage::new(), tree).await.unwrap();
        friend.replicator.add(core, CorePolicy::serve());
    }
    let mut landed = 0;
    for (transfer, ..) in &transfers {
        landed += usize::from(soon(transfer.done()).await.unwrap().state == State::Completed);
    }
    assert_eq!(landed, 2);
    server.close().await;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_book_leaves_room_on_the_disk() {
    let Some((server, disk)) = server_on(40 * MB).await else { return };
    let keys = KeyPair::generate();
    server.add(&keys).await;
    let friend = server.connect(&keys).await;
    let publish = async |id: &str, size: u64| {
        let provider = Arc::new(move |_| {
            let bytes = tokio::io::AsyncReadExt::take(tokio::io::repeat(7), size);
            let provided: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move { Ok(Provided::Reader(Box::new(bytes))) });
            provided
        });
        let entry = serde_json::from_value(json!({"id": id, "title": id})).unwrap();
        let book = Book { entry, source: Some(BookSource::OnDemand(provider)) };
        server.node.catalog().publish(vec![book]).await.unwrap();
    };
    publish("large", 400 * MB as u64).await;
    publish("small", 2 * MB as u64).await;
    let reply = friend.ask_until("1", "large", "unavailable").await;
    assert_eq!(reply["reason"], "its disk failed");
    let told = server.outgoing().remove(0);
    assert_eq!(told.error.as_deref(), Some(ErrorCode::DiskFull.as_str()), "{told:?}");
    // The owner's own writes go on, and so does what fits.
    friend.ask_until("2", "small", "granted").await;
    server.close().await;
    drop(disk);
}

/// A file system that keeps no count of its blocks says that none are free.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_say_how_much_is_free_takes_a_book() {
    let server = Server::start(Policy::AutoAccept).await;
    let folder = server.dir.path().join("uncounted");
    let Some(disk) = SmallDisk::mount_as(&folder, "ramfs", "mode=0700") else { return };
    let keys = KeyPair::generate();
    server.add(&keys).await;
    let friend = server.connect(&keys).await;
    let path = server.dir.path().join("a.epub");
    std::fs::write(&path, noise(1, 200_000)).unwrap();
    let tree = StaticTree::build(&path, None).await.unwrap();
    let core = Core::open_static(&MemoryStorage::new(), &tree).await.unwrap();
    friend.replicator.add(core, CorePolicy::serve());
    let (peer, book_id) = (keys.public_key().to_z32(), "a".to_owned());
    let request = BookRequest { peer, book_id, save_to: Some(folder.join("a.epub")) };
    let transfer = server.node.transfers().request(request).await.unwrap();
    let message = soon(friend.channel.recv()).await.unwrap();
    let asked: Value = serde_json::from_slice(&message.data).unwrap();
    let hash: String = tree.hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let reply = json!({
        "id": asked["id"], "status": "granted", "key": z32::encode(&tree.key), "hash": hash,
        "length": tree.length, "byteLength": tree.byte_length,
    });
    friend.send(1, reply).await;
    let info = soon(transfer.done()).await.unwrap();
    assert_eq!(info.state, State::Completed, "{info:?}");
    assert_eq!(std::fs::read(folder.join("a.epub")).unwrap(), std::fs::read(&path).unwrap());
    server.close().await;
    drop(disk);
}
