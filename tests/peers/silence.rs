//! A peer to which the path breaks while it is connected.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alex_p2p::events::EventKind;
use alex_p2p::peers::{AddOptions, PeerUpdate};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::setup::{Server, alone, eventually};

/// A path to a server that can be cut.
struct Path {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    passing: JoinHandle<()>,
}

impl Path {
    async fn to(server: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, is_cut) = (front.local_addr().unwrap(), Arc::<AtomicBool>::default());
        let cut = Arc::clone(&is_cut);
        let passing = tokio::spawn(async move {
            let (mut there, mut here) = ([0; 65_536], [0; 65_536]);
            let mut client = None;
            loop {
                let (socket, to, packet) = tokio::select! {
                    Ok((length, from)) = front.recv_from(&mut there) => {
                        client = Some(from);
                        (&back, Some(server), &there[..length])
                    }
                    Ok((length, _)) = back.recv_from(&mut here) => (&front, client, &here[..length]),
                };
                if let Some(to) = to.filter(|_| !cut.load(Ordering::Relaxed)) {
                    let _ = socket.send_to(packet, to).await;
                }
            }
        });
        Self { address, is_cut, passing }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_path_breaks_is_met_on_another_and_never_offline() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = Server::open(dirs[0].path(), alone(), 1).await;
    let b = Server::open(dirs[1].path(), alone(), 2).await;
    let path = Path::to(b.dht.local_addr()).await;
    let through = AddOptions { address: Some(path.address.to_string()), ..AddOptions::default() };
    b.peers.add(&a.key().to_z32(), AddOptions::default()).await.unwrap();
    a.peers.add(&b.key().to_z32(), through).await.unwrap();
    a.wait_online(&b, true).await;
    b.wait_online(&a, true).await;
    let address = || a.peers.get(&b.key()).unwrap().connection.map(|now| now.address);
    let address_at_b = || b.peers.get(&a.key()).unwrap().connection.map(|now| now.address);
    assert_eq!(address(), Some(path.address.to_string()));
    let back = address_at_b();

    let mut events = [&a, &b].map(|server| server.events.subscribe(None));
    let real = b.dht.local_addr().to_string();
    let update = PeerUpdate { address: Some(Some(real.clone())), ..PeerUpdate::default() };
    a.peers.update(&b.key(), update).await.unwrap();
    path.is_cut.store(true, Ordering::Relaxed);
    eventually("it is met at its own address", || address() == Some(real.clone())).await;
    eventually("it sees us there, too", || address_at_b() != back).await;
    for events in &mut events {
        while let Some(event) = events.try_next() {
            assert!(!matches!(event.kind, EventKind::PeerOffline { .. }), "{event:?}");
        }
    }
    path.passing.abort();
    a.close().await;
    b.close().await;
}
