//! Connects a stream's state machine with a socket, the clock and the program.
//!
//! Packets are handled, and answered, by the socket's reading task. A task a stream sends what the
//! program wrote and watches the timers. Whoever holds the lock never waits, nor calls the system: one at a
//! time sends, without the lock, and whoever else has something to send leaves it to that one.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use tokio::sync::{Notify, watch};

use super::link::mtu_towards;
use super::machine::{Machine, Transmit};
use super::socket::{Inner, UdxSocket, canonical};
use super::stream::{CloseReason, StreamOptions};
use super::table::Udx;
use crate::sync::lock;

/// A stream, as its socket, its task and its holders share it.
pub(super) struct Shared {
    pub(super) id: u32,
    udx: Udx,
    state: Mutex<State>,
    /// Wakes the stream's task.
    wake: Notify,
    /// Wakes who waits for the first packet, or for a packet over another socket.
    first_packet: Notify,
    /// Wakes who waits for a move to be over.
    moved: Notify,
    pub(super) closed: watch::Sender<Option<CloseReason>>,
    /// Whether the other side does not answer.
    pub(super) silent: watch::Sender<bool>,
}

/// What the lock protects.
pub(super) struct State {
    pub(super) machine: Machine,
    socket: Option<UdxSocket>,
    /// The socket before a move: libudx sends packets again to where they were sent first.
    previous_socket: Option<UdxSocket>,
    /// The first packet's way, of a stream that is not connected; later that of one over another socket.
    first: Option<(UdxSocket, SocketAddr)>,
    /// Somebody waits for packets over another socket.
    is_watched: bool,
    /// What `silent` says.
    is_silent: bool,
    /// Somebody waits for a move to be over.
    awaits_move: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    pub(super) finisher: Option<Waker>,
    /// When the task will look by itself; `None`: not before it is woken.
    armed: Option<Instant>,
    /// The task has been woken and has not looked yet.
    is_woken: bool,
    /// What the kernel did not take.
    blocked: Option<(Vec<u8>, Transmit)>,
    /// Somebody sends, and looks for more after each batch.
    is_sending: bool,
    is_listed: bool,
}

/// The sockets that a stream held.
type Released = ([Option<UdxSocket>; 2], Option<(UdxSocket, SocketAddr)>);

thread_local! {
    /// Where batches are put together: one a thread serves all streams.
    static BATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Shared {
    pub(super) fn new(udx: Udx, id: u32, options: &StreamOptions) -> Arc<Self> {
        Arc::new(Self {
            id,
            udx,
            state: Mutex::new(State {
                machine: Machine::new(Instant::now(), id, options),
                socket: None,
                previous_socket: None,
                first: None,
                is_watched: false,
                is_silent: false,
                awaits_move: false,
                reader: None,
                writer: None,
                finisher: None,
                armed: None,
                is_woken: false,
                blocked: None,
                is_sending: false,
                is_listed: true,
            }),
            wake: Notify::new(),
            first_packet: Notify::new(),
            moved: Notify::new(),
            closed: watch::Sender::new(None),
            silent: watch::Sender::new(false),
        })
    }

    /// Looks at or changes the stream; what that leaves to send is sent by the stream's task.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut lock(&self.state))
    }

    /// Wakes the stream's task, so that it sends what was written.
    pub(super) fn wake(&self, state: &mut State) {
        if !std::mem::replace(&mut state.is_woken, true) {
            self.wake.notify_one();
        }
    }

    pub(super) fn connect(self: &Arc<Self>, socket: &UdxSocket, id: u32, remote: SocketAddr) {
        let remote = canonical(remote);
        let link_mtu = mtu_towards(remote);
        let mut state = lock(&self.state);
        if !state.machine.connect(Instant::now(), remote, id, link_mtu) {
            return;
        }
        state.socket = Some(socket.clone());
        let first = state.first.take();
        drop(self.flush(state));
        // A socket that was let go closes, and closing looks at all streams: not under the lock.
        drop(first);
        self.first_packet.notify_waiters();
        if socket.is_closed() {
            self.socket_closed(socket.inner());
        }
        socket.runtime().spawn(Arc::clone(self).run());
    }

    pub(super) fn change_remote(&self, socket: &UdxSocket, id: u32, remote: SocketAddr) -> bool {
        let remote = canonical(remote);
        let link_mtu = mtu_towards(remote);
        let mut state = lock(&self.state);
        // A way that was given and has not answered is forgotten, with its socket.
        let keeps_previous = state.machine.is_on_previous();
        if !state.machine.change_remote(Instant::now(), remote, id, link_mtu) {
            return false;
        }
        let newest = state.socket.replace(socket.clone());
        let before = if keeps_previous {
            newest
        } else {
            std::mem::replace(&mut state.previous_socket, newest)
        };
        state.blocked = None;
        state = self.flush(state);
        self.wake(&mut state);
        drop(state);
        drop(before);
        true
    }

    /// Takes packets with this stream's id; [`Self::drive`] follows.
    pub(super) fn receive<'a>(
        &self,
        socket: &UdxSocket,
        from: SocketAddr,
        packets: impl Iterator<Item = &'a [u8]>,
    ) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        for packet in packets {
            state.machine.handle_packet(now, from, packet);
        }
        let is_open = state.machine.closed().is_none();
        let is_used = || {
            let known = [&state.socket, &state.previous_socket];
            known.into_iter().flatten().any(|known| known.is_same(socket))
        };
        let waits = is_open && (!state.machine.is_connected() || (state.is_watched && !is_used()));
        if waits && state.first.is_none() {
            state.first = Some((socket.clone(), from));
            drop(state);
            self.first_packet.notify_waiters();
        }
    }

    /// Waits for the first packet of a stream that is not connected.
    pub(super) async fn first_packet(self: Arc<Self>) -> Option<(UdxSocket, SocketAddr)> {
        loop {
            // Made before looking: a notification in between is not missed.
            let notified = self.first_packet.notified();
            {
                let state = lock(&self.state);
                if state.machine.is_connected() || state.machine.closed().is_some() {
                    return None;
                }
                if state.first.is_some() {
                    return state.first.clone();
                }
            }
            notified.await;
        }
    }

    /// Waits for a packet of a connected stream over a socket that it is not connected over.
    pub(super) async fn other_path(self: Arc<Self>) -> Option<(UdxSocket, SocketAddr)> {
        let _watch = Watch::new(&self);
        loop {
            let notified = self.first_packet.notified();
            {
                let mut state = lock(&self.state);
                if state.machine.closed().is_some() {
                    return None;
                }
                if state.machine.is_connected() && state.first.is_some() {
                    return state.first.take();
                }
            }
            notified.await;
        }
    }

    /// Waits until packets go the way that the program gave last; false when the stream closed before.
    pub(super) async fn moved(&self) -> bool {
        loop {
            let notified = self.moved.notified();
            {
                let mut state = lock(&self.state);
                state.awaits_move = true;
                if state.machine.closed().is_some() {
                    return false;
                }
                if state.machine.is_connected() && !state.machine.is_on_previous() {
                    return true;
                }
            }
            notified.await;
        }
    }

    /// The socket and the address that packets go to.
    pub(super) fn path(&self) -> Option<(UdxSocket, SocketAddr)> {
        let state = lock(&self.state);
        let previous = state.previous_socket.as_ref().filter(|_| state.machine.is_on_previous());
        let socket = previous.or(state.socket.as_ref())?;
        Some((socket.clone(), state.machine.remote_addr()?))
    }

    /// Sends what is due and wakes whom it concerns.
    pub(super) fn drive(&self) {
        drop(self.flush(lock(&self.state)));
    }

    /// Ends the stream at once, telling the other side.
    pub(super) fn destroy(&self) {
        self.finish_with(|machine| machine.destroy(Instant::now()));
    }

    /// The program let go of the stream.
    pub(super) fn detach(&self) {
        self.finish_with(|machine| machine.detach(Instant::now()));
    }

    /// The socket `inner` is about to close.
    pub(super) fn socket_closed(&self, inner: &Inner) {
        let uses = |socket: &UdxSocket| std::ptr::eq(socket.inner(), inner);
        if lock(&self.state).socket.as_ref().is_some_and(uses) {
            self.finish_with(|machine| machine.abandon(Instant::now()));
        }
    }

    fn finish_with(&self, act: impl FnOnce(&mut Machine)) {
        let mut state = lock(&self.state);
        act(&mut state.machine);
        state = self.flush(state);
        self.wake(&mut state);
        let released = self.release_if_gone(&mut state);
        drop(state);
        drop(released);
        self.first_packet.notify_waiters();
    }

    /// Takes a stream that is gone off the table. What is returned is dropped without the lock.
    fn release_if_gone(&self, state: &mut State) -> Option<Released> {
        if !state.machine.is_gone() {
            return None;
        }
        if std::mem::take(&mut state.is_listed) {
            self.udx.remove(self.id);
        }
        state.blocked = None;
        Some(([state.socket.take(), state.previous_socket.take()], state.first.take()))
    }

    /// Sends what is due and wakes whom it concerns. The lock is let go while the system sends.
    fn flush<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if !state.is_sending {
            state.is_sending = true;
            // Taken, not borrowed: letting go of a socket below may end other streams, which send.
            let mut batch = BATCH.take();
            state = self.send_all(state, &mut batch);
            BATCH.set(batch);
            state.is_sending = false;
        }
        self.notify(&mut state);
        state
    }

    fn send_all<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        batch: &mut Vec<u8>,
    ) -> MutexGuard<'a, State> {
        loop {
            let Some(newest) = state.socket.clone() else { return state };
            batch.clear();
            let transmit = match state.blocked.take() {
                Some((blocked, transmit)) => {
                    *batch = blocked;
                    transmit
                }
                None => {
                    let size = |size| newest.batch(size);
                    match state.machine.poll_transmit(Instant::now(), size, batch) {
                        Some(transmit) => transmit,
                        None => return state,
                    }
                }
            };
            let previous = state.previous_socket.clone().filter(|_| transmit.is_previous);
            drop(state);
            let socket = previous.unwrap_or(newest);
            let sent = socket.transmit(transmit.destination, batch, transmit.segment);
            // The last one closes, and closing looks at all streams: not under the lock.
            drop(socket);
            state = lock(&self.state);
            if would_block(sent) {
                state.blocked = Some((batch.clone(), transmit));
                return state;
            }
        }
    }

    fn notify(&self, state: &mut State) {
        let machine = &state.machine;
        let closed = machine.closed();
        if closed.is_some() && self.closed.borrow().is_none() {
            self.closed.send_replace(closed);
            self.first_packet.notify_waiters();
        }
        let is_silent = machine.is_silent();
        if is_silent != state.is_silent {
            state.is_silent = is_silent;
            self.silent.send_replace(is_silent);
        }
        let over = closed.is_some();
        if state.awaits_move && (over || !machine.is_on_previous()) {
            state.awaits_move = false;
            self.moved.notify_waiters();
        }
        let readable = over || machine.available() > 0 || machine.has_ended();
        let (writable, flushed) = (over || machine.has_room(), over || machine.is_flushed());
        let (deadline, is_gone) = (machine.deadline(), machine.is_gone());
        let ready = [
            if readable { state.reader.take() } else { None },
            if writable { state.writer.take() } else { None },
            if flushed { state.finisher.take() } else { None },
        ];
        ready.into_iter().flatten().for_each(Waker::wake);
        let too_late = deadline.is_some_and(|at| state.armed.is_none_or(|armed| at < armed));
        if too_late || state.blocked.is_some() || is_gone {
            self.wake(state);
        }
    }

    /// The task of a connected stream.
    async fn run(self: Arc<Self>) {
        loop {
            let (socket, deadline, is_blocked) = {
                let mut state = lock(&self.state);
                state.machine.handle_timeout(Instant::now());
                // While awake it needs no waking.
                state.is_woken = true;
                state = self.flush(state);
                state.is_woken = false;
                if let Some(released) = self.release_if_gone(&mut state) {
                    drop(state);
                    drop(released);
                    return;
                }
                state.armed = state.machine.deadline();
                let blocks_previous = state.blocked.as_ref().is_some_and(|(_, to)| to.is_previous);
                let previous = state.previous_socket.as_ref().filter(|_| blocks_previous);
                // Gone between two looks, and released by whoever ended it.
                let Some(socket) = previous.or(state.socket.as_ref()).cloned() else { return };
                (socket, state.armed, state.blocked.is_some())
            };
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = timer => {}
                () = socket.writable(), if is_blocked => {}
            }
        }
    }
}

/// Has packets over other sockets noticed as long as it lives.
struct Watch<'a> {
    shared: &'a Shared,
}

impl<'a> Watch<'a> {
    fn new(shared: &'a Shared) -> Self {
        lock(&shared.state).is_watched = true;
        Self { shared }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.is_watched = false;
        let first = if state.machine.is_connected() { state.first.take() } else { None };
        drop(state);
        // A socket that is let go closes: not under the lock.
        drop(first);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.is_listed {
            self.udx.remove(self.id);
        }
    }
}

/// Any other error is as good as a lost packet: too large for the interface, no route just now.
fn would_block(result: io::Result<()>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
