//! The DHT under the DHT: a Kademlia of nodes that answer requests (npm `dht-rpc` 6.27).
//!
//! [`Rpc`] owns the sockets and the routing table, answers the commands of this layer by itself, and
//! hands all others to the layer above through [`Rpc::receive`]. The parts that decide anything are
//! without sockets or clock: [`table`], [`search`], [`caution`], [`nat`], [`congestion`], [`token`],
//! [`address_validation`].

pub(crate) mod address_validation;
mod answer;
pub(crate) mod bootstrap;
mod caution;
mod closest;
pub(crate) mod congestion;
pub(crate) mod io;
pub(crate) mod maintain;
pub(crate) mod message;
pub(crate) mod nat;
pub(crate) mod query;
pub(crate) mod search;
pub(crate) mod serve;
pub(crate) mod socket;
pub(crate) mod table;
pub(crate) mod token;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::address_validation::AddressValidation;
pub(crate) use self::answer::Answer;
use self::answer::LongAnswer;
use self::io::{Attempts, Io, Reply, RequestError};
use self::message::{NodeId, Request, Token, wire_address};
use self::nat::{NatSampler, NatView};
use self::socket::{Socket, SocketKind};
use self::table::{RoutingTable, TableNode, Tick};
use super::cache::ExpiringMap;
use super::options::BootstrapNode;
use super::tuning::Tuning;
use crate::crypto;
use crate::rate_limit::RateLimit;
use crate::sync::lock;
use crate::tasks::Spawn;
use crate::udx::Udx;

/// A command with its arguments, to be sent to one node.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub internal: bool,
    pub command: u64,
    pub token: Option<Token>,
    pub target: Option<NodeId>,
    pub value: Option<Bytes>,
}

impl Call {
    /// A command of the layer above.
    pub(crate) fn new(command: u64, target: Option<NodeId>, value: Option<Bytes>) -> Self {
        Self { internal: false, command, token: None, target, value }
    }

    /// A command of this layer.
    pub(crate) fn internal(command: u64, value: Option<Bytes>) -> Self {
        Self { internal: true, command, token: None, target: None, value }
    }

    pub(crate) fn with_token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }
}

/// How a node takes part in the network; see [`super::DhtOptions`].
#[derive(Debug, Clone)]
pub(crate) struct RpcOptions {
    pub bootstrap: Vec<BootstrapNode>,
    /// `None`: start ephemeral, become persistent once proved reachable and stable.
    pub ephemeral: Option<bool>,
    /// Whether to assume that nobody reaches us before it is proved.
    pub firewalled: bool,
    /// Whether to have that proved by the first queries.
    pub quick_firewall: bool,
    /// The address at which others reach us, when it is known without asking.
    pub public_address: Option<SocketAddrV4>,
    pub cached_nodes: Vec<SocketAddrV4>,
    /// Whether to know no nodes and ask nobody.
    pub direct_only: bool,
    pub tuning: Tuning,
}

/// What changes with time; locked shortly, never across a wait.
pub(crate) struct State {
    pub table: RoutingTable,
    pub nat: NatSampler,
    /// Whose views were counted although they are no persistent nodes.
    pub ephemeral_samples: Vec<SocketAddr>,
    pub firewalled: bool,
    pub ephemeral: bool,
    pub bootstrapped: bool,
    pub tick: Tick,
    pub stable_ticks: u64,
    pub refresh_ticks: u64,
    /// The host at which reachability was last checked, to not check it again.
    pub checked_host: Option<Ipv4Addr>,
    /// Pings of table nodes in flight.
    pub checks: usize,
    /// Pings in flight that decide between an old and a new node.
    pub swaps: usize,
    pub down_hints_sent: usize,
    /// The bootstrap nodes' addresses, when all were found, and since when.
    pub resolved: Option<(Instant, Vec<SocketAddrV4>)>,
    /// The lookup of their addresses that is under way.
    pub resolving: Option<watch::Receiver<bootstrap::Resolved>>,
    /// How many requests each host may still send.
    pub limits: ExpiringMap<RateLimit>,
}

/// One node of the DHT.
pub(crate) struct Rpc {
    pub io: Io,
    pub options: RpcOptions,
    pub state: Mutex<State>,
    validation: Mutex<AddressValidation<LongAnswer>>,
    /// Turns true once the first queries are over.
    pub ready: watch::Sender<bool>,
    /// Counts changes of our address or reachability.
    pub network_changes: watch::Sender<u64>,
    pub cancel: CancellationToken,
    pub tasks: TaskTracker,
}

/// A command of the layer above that arrived.
#[derive(Clone)]
pub(crate) struct Incoming {
    pub request: Request,
    /// Bytes of the packet.
    pub size: usize,
    /// Where it came from, canonical.
    pub from: SocketAddr,
    /// The socket on which it arrived, and through which the answer goes.
    pub socket: Socket,
}

impl Rpc {
    /// Binds nothing and sends nothing yet; [`Rpc::start`] does.
    pub(crate) fn new(server: Socket, client: Socket, options: RpcOptions) -> Arc<Self> {
        let mut nat = NatSampler::default();
        if let Some(address) = options.public_address {
            nat.add(address);
        }
        let mut table = RoutingTable::new(crypto::random());
        table.set_bucket_size(options.tuning.bucket_size);
        for address in &options.cached_nodes {
            // Full rows and our own address are no news here.
            let _ = table.add(TableNode::new(*address, 0));
        }
        let state = State {
            table,
            nat,
            ephemeral_samples: Vec::new(),
            firewalled: options.firewalled,
            ephemeral: true,
            bootstrapped: false,
            tick: maintain::random_below(100),
            stable_ticks: maintain::STABLE_TICKS,
            refresh_ticks: maintain::REFRESH_TICKS,
            checked_host: None,
            checks: 0,
            swaps: 0,
            down_hints_sent: 0,
            resolved: None,
            resolving: None,
            limits: ExpiringMap::new(serve::MAX_LIMITED_HOSTS, serve::LIMIT_AGE),
        };
        Arc::new(Self {
            io: Io::new(server, client, options.tuning.request_timeout),
            options,
            state: Mutex::new(state),
            validation: Mutex::new(AddressValidation::new()),
            ready: watch::Sender::new(false),
            network_changes: watch::Sender::new(0),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Two sockets as `dht-rpc` has them: the server's on the wanted port or one of the next four,
    /// else on any; the client's on any.
    pub(crate) fn bind_sockets(
        udx: &Udx,
        address: SocketAddr,
    ) -> std::io::Result<(Socket, Socket)> {
        let wanted = address.port();
        let ports = (wanted..=wanted.saturating_add(4)).take(if wanted == 0 { 1 } else { 5 });
        let mut server = None;
        for port in ports.chain([0]) {
            let address = SocketAddr::new(address.ip(), port);
            match Socket::bind(udx, address, SocketKind::Server) {
                Ok(socket) => {
                    server = Some(socket);
                    break;
                }
                Err(error) if port == 0 => return Err(error),
                Err(error) => tracing::debug!(port, %error, "a port is taken"),
            }
        }
        let server = server.ok_or_else(|| std::io::Error::other("no port is free"))?;
        let client = Socket::bind(udx, SocketAddr::new(address.ip(), 0), SocketKind::Client)?;
        Ok((server, client))
    }

    /// Starts the first queries and the upkeep of the table.
    pub(crate) fn start(self: &Arc<Self>) {
        self.spawn({
            let rpc = Arc::clone(self);
            async move { rpc.bootstrap().await }
        });
        self.spawn({
            let rpc = Arc::clone(self);
            async move { rpc.keep_up().await }
        });
    }

    /// Runs `task` until it ends or the node closes.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tasks.spawn_task(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// The socket for whatever we start ourselves.
    pub(crate) fn socket(&self) -> Socket {
        let is_firewalled = lock(&self.state).firewalled;
        if is_firewalled { self.io.client.clone() } else { self.io.server.clone() }
    }

    /// Our id, when we are a persistent node.
    pub(crate) fn id(&self) -> Option<NodeId> {
        let state = lock(&self.state);
        (!state.ephemeral).then(|| state.table.id())
    }

    /// The address at which anybody reaches us, when that is proved.
    pub(crate) fn remote_address(&self) -> Option<SocketAddrV4> {
        let state = lock(&self.state);
        if state.firewalled {
            return None;
        }
        match state.nat.view() {
            NatView::Consistent(address)
                if address.port() == self.io.server.local_addr().port() =>
            {
                Some(address)
            }
            _ => None,
        }
    }

    /// Sends `call` to `to` through the socket of the moment and waits for the answer. Cancel safe.
    pub(crate) async fn request(
        &self,
        to: SocketAddr,
        call: Call,
        attempts: Attempts,
    ) -> Result<Reply, RequestError> {
        self.request_with(&self.socket(), to, call, attempts, || {}).await
    }

    /// [`Rpc::request`] through a given socket; `on_slow` is called when the answer does not come
    /// soon.
    pub(crate) async fn request_with(
        &self,
        socket: &Socket,
        to: SocketAddr,
        call: Call,
        attempts: Attempts,
        on_slow: impl FnMut(),
    ) -> Result<Reply, RequestError> {
        let id = self.id_on(socket);
        let encode = |tid| {
            Request {
                tid,
                to: wire_address(to),
                id,
                token: call.token,
                internal: call.internal,
                command: call.command,
                target: call.target,
                value: call.value,
            }
            .encode()
        };
        self.io.exchange(socket, to, attempts, encode, on_slow).await
    }

    /// Sends the same command on to `to` with another value, under the same transaction id.
    pub(crate) fn relay(&self, incoming: &Incoming, value: Vec<u8>, to: SocketAddr) {
        let request = Request {
            to: wire_address(to),
            id: self.id_on(&incoming.socket),
            token: None,
            value: Some(value.into()),
            ..incoming.request.clone()
        };
        incoming.socket.send(&request.encode(), to);
    }

    /// Persistent nodes put their id on what they send from their server socket.
    fn id_on(&self, socket: &Socket) -> Option<NodeId> {
        self.id().filter(|_| socket.kind == SocketKind::Server)
    }

    /// Ends every request and task, and closes the sockets. Idempotent.
    pub(crate) async fn close(&self) {
        self.cancel.cancel();
        self.io.close();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
