//! The sockets of one punch, and what is sent over them (`hyperdht` `lib/holepuncher.js`,
//! `lib/socket-pool.js`).

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::messages::FirewallKind;
use super::super::node::Inner;
use super::super::rpc::Call;
use super::super::rpc::io::Attempts;
use super::super::rpc::serve::PING;
use super::super::rpc::socket::{Socket, SocketKind};
use super::nat::{ENOUGH, SocketNat};
use super::plan::{self, Plan, Remote};
use super::throttle::Permit;
use crate::crypto;
use crate::sync::lock;
use crate::tasks::Spawn;
use crate::udx::UdxSocket;

/// What a punch sends: one byte, too short for anything else that shares the socket.
const PUNCH: [u8; 1] = [0];
/// Opens our own NAT and dies on the way, before the other's NAT can take offence.
const LOW_TTL: u8 = 5;
/// Sockets tried until one has a NAT that can be understood.
const MAX_REOPENS: usize = 3;
/// Nodes heard from most recently that are not asked first: everybody asks these.
const SKIPPED: usize = 5;
/// How many nodes are asked in all.
const MAX_NODES: usize = 12;

/// One side of one punch. Everything of it ends when it is dropped, except for a stream that goes over
/// one of its sockets.
pub(crate) struct Puncher {
    core: Arc<Core>,
}

struct Core {
    inner: Arc<Inner>,
    is_client: bool,
    state: Mutex<State>,
    /// Whether as much is known of our NAT as there is to know.
    analyzed: watch::Sender<bool>,
    /// The first packet from the other side; only the client waits for it.
    punched: watch::Sender<Option<(UdxSocket, SocketAddr)>>,
    cancel: CancellationToken,
}

struct State {
    /// The first is the one that the other side is told of.
    sockets: Vec<PunchSocket>,
    nat: SocketNat,
    remote: Remote,
    is_punching: bool,
    reopens: usize,
    permit: Option<Permit>,
}

struct PunchSocket {
    socket: Socket,
    /// Ends its reading.
    cancel: CancellationToken,
    _guard: DropGuard,
}

impl Puncher {
    /// Opens a socket and starts to learn about the NAT before it.
    pub(crate) fn open(
        inner: &Arc<Inner>,
        is_client: bool,
        remote_firewall: FirewallKind,
    ) -> io::Result<Self> {
        let state = State {
            sockets: Vec::new(),
            nat: SocketNat::default(),
            remote: Remote { firewall: remote_firewall, ..Remote::default() },
            is_punching: false,
            reopens: 0,
            permit: None,
        };
        let core = Arc::new(Core {
            inner: Arc::clone(inner),
            is_client,
            state: Mutex::new(state),
            analyzed: watch::Sender::new(false),
            punched: watch::Sender::new(None),
            cancel: inner.rpc.cancel.child_token(),
        });
        let puncher = Self { core };
        puncher.core.reset()?;
        Ok(puncher)
    }

    /// The socket that messages about the punch go through.
    pub(crate) fn socket(&self) -> Option<Socket> {
        lock(&self.core.state).sockets.first().map(|first| first.socket.clone())
    }

    /// Adds where `from` sees our socket.
    pub(crate) fn sample(&self, seen: SocketAddrV4, from: SocketAddr) {
        self.core.sample(seen, from);
    }

    /// What is known of our NAT, and our addresses to tell.
    pub(crate) fn local(&self) -> (FirewallKind, Option<Vec<SocketAddrV4>>) {
        let state = lock(&self.core.state);
        (state.nat.firewall(), state.nat.addresses())
    }

    /// What the other side said last.
    pub(crate) fn remote(&self) -> Remote {
        lock(&self.core.state).remote.clone()
    }

    /// Changes what the other side said.
    pub(crate) fn update_remote(&self, update: impl FnOnce(&mut Remote)) {
        update(&mut lock(&self.core.state).remote);
    }

    /// Keeps what we told the other side of our NAT, if that was anything.
    pub(crate) fn freeze(&self) {
        let mut state = lock(&self.core.state);
        if state.nat.firewall() != FirewallKind::Unknown {
            state.nat.freeze();
        }
    }

    /// Whether packets are being sent to the other side.
    pub(crate) fn is_punching(&self) -> bool {
        lock(&self.core.state).is_punching
    }

    /// Waits until our NAT is understood. With `may_reopen`, other sockets are tried while that leads
    /// nowhere. Returns whether a punch can succeed.
    pub(crate) async fn analyze(&self, may_reopen: bool) -> bool {
        loop {
            // The sender lives as long as we do.
            let _ = self.core.analyzed.subscribe().wait_for(|analyzed| *analyzed).await;
            {
                let mut state = lock(&self.core.state);
                let local = state.nat.firewall();
                let is_hopeless = local == FirewallKind::Unknown
                    || (local == FirewallKind::Random
                        && state.remote.firewall == FirewallKind::Random);
                if !is_hopeless {
                    return true;
                }
                if !may_reopen || state.is_punching || state.reopens >= MAX_REOPENS {
                    return false;
                }
                state.reopens += 1;
            }
            if self.core.reset().is_err() {
                return false;
            }
        }
    }

    /// Opens our NAT for packets from `to`, without getting there.
    pub(crate) fn open_session(&self, to: SocketAddrV4) {
        if let Some(socket) = self.socket() {
            send_low(&socket, to);
        }
    }

    /// Sends one packet that should get there.
    pub(crate) fn ping(&self, to: SocketAddrV4) {
        if let Some(socket) = self.socket() {
            socket.send(&PUNCH, to.into());
        }
    }

    /// Starts to punch. False when there is no way.
    pub(crate) fn punch(&self, permit: Option<Permit>) -> bool {
        let (plan, socket) = {
            let mut state = lock(&self.core.state);
            if state.is_punching {
                return true;
            }
            let Some(plan) = Plan::new(state.nat.firewall(), &state.remote) else { return false };
            let Some(first) = state.sockets.first() else { return false };
            let socket = first.socket.clone();
            state.is_punching = true;
            state.permit = permit;
            (plan, socket)
        };
        tracing::debug!(?plan, "punching");
        if let Plan::OpenSockets(to) = plan {
            self.core.open_sockets(to);
        }
        let core = Arc::clone(&self.core);
        let cancel = core.cancel.clone();
        self.core.spawn(cancel, async move {
            match plan {
                Plan::Consistent(addresses) => core.send_rounds(&socket, &addresses).await,
                Plan::TryPorts(host) => try_ports(&socket, host).await,
                Plan::OpenSockets(to) => core.keep_sockets_open(to).await,
            }
            core.cancel.cancel();
        });
        true
    }

    /// Waits for the first packet from the other side: the socket it came to, and its sender.
    pub(crate) async fn punched(&self) -> Option<(UdxSocket, SocketAddr)> {
        let mut punched = self.core.punched.subscribe();
        tokio::select! {
            biased;
            punched = punched.wait_for(Option::is_some) => punched.ok().and_then(|path| path.clone()),
            () = self.core.cancel.cancelled() => None,
        }
    }

    /// Waits until the punch was given up.
    pub(crate) async fn ended(&self) {
        self.core.cancel.cancelled().await;
    }

    /// Gives up.
    pub(crate) fn end(&self) {
        self.core.cancel.cancel();
    }
}

impl Drop for Puncher {
    fn drop(&mut self) {
        self.core.cancel.cancel();
        let mut state = lock(&self.core.state);
        let released = (std::mem::take(&mut state.sockets), state.permit.take());
        drop(state);
        // Sockets close, which looks at all streams: not under the lock.
        drop(released);
    }
}

impl Core {
    fn spawn(&self, cancel: CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
        self.inner.rpc.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Takes another socket, of whose NAT nothing is known yet.
    fn reset(self: &Arc<Self>) -> io::Result<()> {
        let opened = self.bind()?;
        let (socket, cancel) = (opened.socket.clone(), opened.cancel.clone());
        let before = {
            let mut state = lock(&self.state);
            state.nat = SocketNat::default();
            self.analyzed.send_replace(false);
            std::mem::replace(&mut state.sockets, vec![opened])
        };
        drop(before);
        let core = Arc::clone(self);
        self.spawn(cancel, async move { core.ask_nodes(&socket).await });
        Ok(())
    }

    /// Binds a socket and reads from it.
    fn bind(self: &Arc<Self>) -> io::Result<PunchSocket> {
        let address = SocketAddr::new(self.inner.rpc.io.client.local_addr().ip(), 0);
        let socket = Socket::bind(&self.inner.udx, address, SocketKind::Punch)?;
        let cancel = self.cancel.child_token();
        if let Some(mut datagrams) = socket.udx.take_datagrams() {
            let (core, socket) = (Arc::clone(self), socket.clone());
            self.spawn(cancel.clone(), async move {
                while let Some(datagram) = datagrams.recv().await {
                    if datagram.payload.len() <= PUNCH.len() {
                        core.on_punch(&socket, datagram.from);
                    } else if let Some(incoming) = core.inner.rpc.receive(&socket, datagram) {
                        core.inner.on_command(&incoming);
                    }
                }
            });
        }
        Ok(PunchSocket { socket, _guard: cancel.clone().drop_guard(), cancel })
    }

    fn on_punch(&self, socket: &Socket, from: SocketAddr) {
        if !self.is_client {
            // The client decides which path is taken: the first that brings it one of these.
            socket.send(&PUNCH, from);
            return;
        }
        self.punched.send_if_modified(|punched| {
            if punched.is_some() {
                return false;
            }
            tracing::debug!(%from, "a punch got through");
            *punched = Some((socket.udx.clone(), from));
            true
        });
    }

    fn sample(&self, seen: SocketAddrV4, from: SocketAddr) {
        let mut state = lock(&self.state);
        state.nat.add(seen, from);
        if state.nat.is_decided() {
            self.analyzed.send_replace(true);
        }
    }

    /// Asks nodes where they see `socket`, until that says what NAT we have or none are left.
    async fn ask_nodes(&self, socket: &Socket) {
        let mut nodes: Vec<SocketAddrV4> = {
            let state = lock(&self.inner.rpc.state);
            let latest = state.table.oldest_first().into_iter().rev();
            latest.take(MAX_NODES + SKIPPED).map(|node| node.address).collect()
        };
        if nodes.len() >= SKIPPED + FEW_NODES {
            nodes.rotate_left(SKIPPED);
        }
        let mut nodes = nodes.into_iter().take(MAX_NODES);
        let mut pings = JoinSet::new();
        let mut ask = |pings: &mut JoinSet<_>| {
            let Some(node) = nodes.next() else { return };
            let (inner, socket) = (Arc::clone(&self.inner), socket.clone());
            pings.spawn_task(async move {
                let ping = Call::internal(PING, None);
                let to = node.into();
                let reply = inner.rpc.request_with(&socket, to, ping, Attempts::ONCE, || {}).await;
                reply.ok().and_then(|reply| Some((reply.to?, reply.from)))
            });
        };
        (0..ENOUGH).for_each(|_| ask(&mut pings));
        while let Some(outcome) = pings.join_next().await {
            match outcome.ok().flatten() {
                Some((seen, from)) => self.sample(seen, from),
                None => ask(&mut pings),
            }
            let is_done = {
                let state = lock(&self.state);
                state.nat.is_decided()
            };
            if is_done {
                return;
            }
            if pings.is_empty() {
                ask(&mut pings);
            }
        }
        self.analyzed.send_replace(true);
    }

    fn open_sockets(self: &Arc<Self>, to: SocketAddrV4) {
        let missing = plan::BIRTHDAY_SOCKETS - lock(&self.state).sockets.len();
        for _ in 0..missing {
            // Fewer sockets make it slower, not impossible.
            let Ok(opened) = self.bind() else { return };
            send_low(&opened.socket, to);
            lock(&self.state).sockets.push(opened);
        }
    }

    async fn send_rounds(&self, socket: &Socket, addresses: &[plan::RemoteAddress]) {
        if !self.is_client {
            // What the client asked for was just answered with a packet: see whether that does it.
            tokio::time::sleep(PATIENCE).await;
        }
        let mut round = 0;
        while let Some((due, pause)) = plan::consistent_round(round, addresses) {
            due.iter().for_each(|to| socket.send(&PUNCH, (*to).into()));
            tokio::time::sleep(pause).await;
            round += 1;
        }
    }

    /// Sends from one socket after the other, so that our NAT forgets none of them.
    async fn keep_sockets_open(&self, to: SocketAddrV4) {
        let end = Instant::now() + plan::RANDOM_PUNCH;
        let mut ticks = interval(plan::KEEP_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_first_round = true;
        loop {
            let count = lock(&self.state).sockets.len();
            for index in 0..count {
                ticks.tick().await;
                if Instant::now() >= end {
                    return;
                }
                let socket = lock(&self.state).sockets.get(index).map(|s| s.socket.clone());
                match socket {
                    Some(socket) if is_first_round => send_low(&socket, to),
                    Some(socket) => socket.send(&PUNCH, to.into()),
                    None => return,
                }
            }
            is_first_round = false;
        }
    }
}

/// With fewer nodes than this besides those skipped, none are skipped.
const FEW_NODES: usize = 3;
/// How long the server waits for its first packet to do the work.
const PATIENCE: Duration = Duration::from_millis(200);

/// Sends to one random port of `host` after the other.
async fn try_ports(socket: &Socket, host: std::net::Ipv4Addr) {
    let end = Instant::now() + plan::RANDOM_PUNCH;
    let mut ticks = interval(plan::PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < end {
        ticks.tick().await;
        let port = plan::port(u16::from_le_bytes(crypto::random()));
        socket.send(&PUNCH, SocketAddr::new(host.into(), port));
    }
}

fn send_low(socket: &Socket, to: SocketAddrV4) {
    if let Err(error) = socket.udx.send_datagram_ttl(&PUNCH, to.into(), LOW_TTL) {
        tracing::trace!(%to, %error, "a packet was not sent");
    }
}
