//! Queries over the network: ask nodes closer and closer to a target (`dht-rpc` `lib/query.js`).

use std::collections::VecDeque;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::io::{Attempts, Reply, RequestError};
use super::message::NodeId;
use super::search::{Search, Step};
use super::table::K;
use super::{Call, Rpc};
use crate::sync::lock;
use crate::tasks::Spawn;

/// How often a query asks a silent node again.
const RETRIES: u32 = 5;

/// Nodes asked at once by queries nobody waits for.
const BACKGROUND_CONCURRENCY: usize = 2;

/// How a query goes about it.
#[derive(Debug, Clone)]
pub(crate) struct QueryOptions {
    /// Nodes to start from, closest to an earlier result; empty to start from the routing table.
    pub nodes: Vec<SocketAddrV4>,
    /// Ask these nodes and no others.
    pub only_nodes: bool,
    pub retries: u32,
    /// Yield to queries that somebody waits for.
    pub is_background: bool,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self { nodes: Vec::new(), only_nodes: false, retries: RETRIES, is_background: false }
    }
}

enum Event {
    Slow(SocketAddrV4),
    Over(SocketAddrV4, Result<Reply, RequestError>),
}

/// A query under way. Dropping it drops its requests.
pub(crate) struct Query {
    rpc: Arc<Rpc>,
    call: Call,
    options: QueryOptions,
    search: Search<Arc<Reply>>,
    requests: JoinSet<()>,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    replies: VecDeque<Arc<Reply>>,
    is_started: bool,
    is_finished: bool,
}

impl Query {
    /// Prepares a query for `target` with `call`, whose target is set to it. Nothing is sent before
    /// the first [`Query::next`].
    pub(crate) fn new(
        rpc: Arc<Rpc>,
        target: NodeId,
        mut call: Call,
        options: QueryOptions,
    ) -> Self {
        call.target = Some(target);
        let own_id = lock(&rpc.state).table.id();
        let mut search = Search::new(target, own_id, options.nodes.is_empty());
        for node in &options.nodes {
            let _ = search.add(*node, None);
        }
        if options.only_nodes {
            search.close_to_new_nodes();
        }
        search.set_concurrency(rpc.options.tuning.parallel_requests);
        if options.is_background {
            search.set_concurrency(BACKGROUND_CONCURRENCY);
        }
        let (sender, events) = mpsc::channel(64);
        Self {
            rpc,
            call,
            options,
            search,
            requests: JoinSet::new(),
            events,
            sender,
            replies: VecDeque::new(),
            is_started: false,
            is_finished: false,
        }
    }

    /// The next node's reply without an error; `None` when the query is over. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Arc<Reply>> {
        if !self.is_started {
            if !self.options.only_nodes && self.options.nodes.is_empty() {
                self.add_from_table().await;
            }
            self.is_started = true;
        }
        loop {
            if let Some(reply) = self.replies.pop_front() {
                return Some(reply);
            }
            if self.is_finished {
                return None;
            }
            match self.search.next() {
                Step::Visit(address) => self.visit(address),
                Step::NeedTable => self.add_from_table().await,
                Step::Finished => {
                    self.is_finished = true;
                    self.requests.abort_all();
                    self.rpc.check_slow(self.search.slow_nodes());
                }
                Step::Wait => {
                    // We hold a sender, so there is always an event to come or a request in flight.
                    let event = self.events.recv().await?;
                    self.on_event(event);
                }
            }
        }
    }

    /// Runs the query to its end.
    pub(crate) async fn finish(mut self) -> Vec<Arc<Reply>> {
        while self.next().await.is_some() {}
        self.into_closest()
    }

    /// The replies of the nodes closest to the target, closest first.
    pub(crate) fn into_closest(self) -> Vec<Arc<Reply>> {
        self.search.into_closest()
    }

    async fn add_from_table(&mut self) {
        let Some(target) = self.call.target else { return };
        let missing = K.saturating_sub(self.search.pending());
        let nodes: Vec<SocketAddrV4> = {
            let state = lock(&self.rpc.state);
            state.table.closest(&target, missing).iter().map(|node| node.address).collect()
        };
        for node in nodes {
            let _ = self.search.add(node, None);
        }
        if self.search.pending() < K {
            for node in self.rpc.resolve_bootstrap().await {
                let _ = self.search.add(node, None);
            }
        }
    }

    fn visit(&mut self, address: SocketAddrV4) {
        let rpc = Arc::clone(&self.rpc);
        let call = self.call.clone();
        let sender = self.sender.clone();
        let attempts = Attempts { retries: self.options.retries };
        while self.requests.try_join_next().is_some() {}
        self.requests.spawn_task(async move {
            let socket = rpc.socket();
            let slow = || _ = sender.try_send(Event::Slow(address));
            let to = SocketAddr::V4(address);
            let outcome = rpc.request_with(&socket, to, call, attempts, slow).await;
            // The query may be over: then nobody needs the answer.
            let _ = sender.send(Event::Over(address, outcome)).await;
        });
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Slow(address) => self.search.slow(address),
            Event::Over(address, Ok(reply)) => {
                let reply = Arc::new(reply);
                let is_error = reply.error != 0;
                let hints = self.search.answered(
                    address,
                    reply.id,
                    is_error,
                    &reply.closer_nodes,
                    Arc::clone(&reply),
                );
                self.rpc.send_down_hints(hints);
                if !is_error {
                    self.replies.push_back(reply);
                }
                if self.options.is_background {
                    let is_idle = self.rpc.io.stats().in_flight < 3;
                    let most = self.rpc.options.tuning.parallel_requests;
                    let concurrency = if is_idle { most } else { BACKGROUND_CONCURRENCY };
                    self.search.set_concurrency(concurrency);
                }
            }
            Event::Over(address, Err(error)) => {
                let hints = self.search.timed_out(address);
                if error == RequestError::Timeout {
                    self.rpc.on_timeout(address);
                    self.rpc.send_down_hints(hints);
                }
            }
        }
    }
}
