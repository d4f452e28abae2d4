//! Which channels exist and how the two sides' ids belong together, without bytes or tasks.
//!
//! Each side names a channel by an id of its own. A channel is open once both sides have sent an
//! open for the same protocol and id, in either order; opens of one name pair first come, first
//! served. An id can be used again when the other side has surely forgotten it: at once if the
//! channel was paired, else when the other side's open or reject has arrived.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tokio::time::Instant;

use super::limits::{MAX_LOCAL_CHANNELS, MAX_REMOTE_CHANNELS};
use super::pending::{Name, Pending};
use super::{Message, MuxError};

#[derive(Debug)]
enum Remote {
    Pending(Pending),
    Open { local: u64 },
}

#[derive(Debug)]
struct Local<C> {
    channel: C,
    name: Name,
    remote: Option<u64>,
}

/// What is known of one name.
#[derive(Debug, Default)]
struct Info {
    /// Our open channel.
    open: Option<u64>,
    /// Remote ids that wait for us, oldest first.
    incoming: VecDeque<u64>,
    /// Local ids that wait for the remote, oldest first; some may be closed already.
    outgoing: VecDeque<u64>,
    aliases: Vec<Name>,
}

/// What the remote's open led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RemoteOpened<C> {
    /// The channel that we had opened is open on both sides now.
    Paired(C),
    /// We had closed it already, and the remote is told.
    Ignored,
    /// It must be rejected.
    Refused,
    /// It waits for us; the number tells it from a later one with the same id.
    Pending { serial: u64 },
}

/// What the remote's close led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RemoteClosed<C> {
    /// The channel is closed.
    Closed(C),
    /// It was waiting for us, and must be rejected so that the remote can use its id again.
    Refused,
    /// There is no such channel (any more).
    Ignored,
}

/// Where a message goes.
#[derive(Debug)]
pub(super) enum Target<'a, C> {
    Channel(&'a C),
    Pending(&'a mut Vec<Message>),
    /// A closed channel: the message was under way.
    Closed,
    /// A channel that the remote never opened.
    Nobody,
}

/// The channels of one connection. `C` is the handle of a channel.
#[derive(Debug)]
pub(super) struct Table<C> {
    locals: HashMap<u64, Local<C>>,
    next_local: u64,
    free: Vec<u64>,
    remotes: HashMap<u64, Remote>,
    /// The highest id that the remote has used. It may grow by one at a time.
    last_remote: u64,
    infos: HashMap<Name, Info>,
    /// Other names to the names that `infos` has.
    aliases: HashMap<Name, Name>,
    /// The names of all ids in any `outgoing`.
    unanswered: HashMap<u64, Name>,
    next_serial: u64,
}

impl<C: Clone> Table<C> {
    pub(super) fn new() -> Self {
        Self {
            locals: HashMap::new(),
            next_local: 1,
            free: Vec::new(),
            remotes: HashMap::new(),
            last_remote: 0,
            infos: HashMap::new(),
            aliases: HashMap::new(),
            unanswered: HashMap::new(),
            next_serial: 0,
        }
    }

    /// Opens a channel on our side; `make` gets the local id. If the remote has opened it before,
    /// what waited comes along and the channel is paired.
    pub(super) fn open(
        &mut self,
        name: &Name,
        aliases: &[String],
        make: impl FnOnce(u64) -> C,
    ) -> Result<(C, Option<Pending>), MuxError> {
        let name = self.canonical(name);
        if self.infos.get(&name).is_some_and(|info| info.open.is_some()) {
            return Err(MuxError::AlreadyOpen);
        }
        let local = match self.free.pop() {
            Some(local) => local,
            None if self.next_local > MAX_LOCAL_CHANNELS => {
                return Err(MuxError::LimitExceeded("the number of channels"));
            }
            None => {
                self.next_local += 1;
                self.next_local - 1
            }
        };
        let others: Vec<Name> = aliases
            .iter()
            .map(|alias| Name { protocol: alias.clone(), id: name.id.clone() })
            .filter(|other| *other != name)
            .collect();
        let pending = self.take_incoming(&name, &others);
        for other in &others {
            if !self.infos.contains_key(other) && !self.aliases.contains_key(other) {
                self.aliases.insert(other.clone(), name.clone());
                self.infos.entry(name.clone()).or_default().aliases.push(other.clone());
            }
        }
        let channel = make(local);
        let remote = pending.as_ref().map(|(remote, _)| *remote);
        let info = self.infos.entry(name.clone()).or_default();
        info.open = Some(local);
        match remote {
            Some(remote) => drop(self.remotes.insert(remote, Remote::Open { local })),
            None => {
                info.outgoing.push_back(local);
                self.unanswered.insert(local, name.clone());
            }
        }
        self.locals.insert(local, Local { channel: channel.clone(), name, remote });
        Ok((channel, pending.map(|(_, pending)| pending)))
    }

    /// Closes a channel on our side. Whether it was open, so that the remote has to be told.
    pub(super) fn close(&mut self, local: u64) -> bool {
        let Some(closed) = self.locals.remove(&local) else { return false };
        if let Some(remote) = closed.remote {
            self.remotes.remove(&remote);
            self.free.push(local);
        }
        self.forget_open(&closed.name);
        true
    }

    /// The remote opens a channel.
    pub(super) fn remote_open(
        &mut self,
        remote: u64,
        name: &Name,
        handshake: Bytes,
        now: Instant,
    ) -> Result<RemoteOpened<C>, &'static str> {
        if remote == 0 || remote > self.last_remote.saturating_add(1) {
            return Err("open with an id out of order");
        }
        if self.remotes.contains_key(&remote) {
            return Err("open with an id in use");
        }
        self.last_remote = self.last_remote.max(remote);
        let name = self.canonical(name);
        if let Some(info) = self.infos.get_mut(&name) {
            if let Some(local) = info.outgoing.pop_front() {
                self.unanswered.remove(&local);
                let Some(ours) = self.locals.get_mut(&local) else {
                    self.free.push(local);
                    self.collect(&name);
                    return Ok(RemoteOpened::Ignored);
                };
                ours.remote = Some(remote);
                let channel = ours.channel.clone();
                self.remotes.insert(remote, Remote::Open { local });
                return Ok(RemoteOpened::Paired(channel));
            }
            if info.open.is_some() {
                return Ok(RemoteOpened::Refused);
            }
        }
        if self.remotes.len() >= MAX_REMOTE_CHANNELS {
            return Ok(RemoteOpened::Refused);
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        self.infos.entry(name.clone()).or_default().incoming.push_back(remote);
        self.remotes.insert(remote, Remote::Pending(Pending::new(name, serial, handshake, now)));
        Ok(RemoteOpened::Pending { serial })
    }

    /// The remote rejects a channel that we opened; if we still have it, it is closed.
    pub(super) fn remote_reject(&mut self, local: u64) -> Result<Option<C>, &'static str> {
        let name = self.unanswered.remove(&local).ok_or("reject of a channel that is not open")?;
        if let Some(info) = self.infos.get_mut(&name) {
            info.outgoing.retain(|other| *other != local);
        }
        self.free.push(local);
        let closed = self.locals.remove(&local);
        if closed.is_some() {
            self.forget_open(&name);
        } else {
            self.collect(&name);
        }
        Ok(closed.map(|closed| closed.channel))
    }

    /// The remote closes a channel.
    pub(super) fn remote_close(&mut self, remote: u64) -> RemoteClosed<C> {
        match self.remotes.remove(&remote) {
            None => RemoteClosed::Ignored,
            Some(Remote::Pending(pending)) => {
                self.forget_incoming(&pending.name, remote);
                RemoteClosed::Refused
            }
            Some(Remote::Open { local }) => {
                self.free.push(local);
                let Some(closed) = self.locals.remove(&local) else { return RemoteClosed::Ignored };
                self.forget_open(&closed.name);
                RemoteClosed::Closed(closed.channel)
            }
        }
    }

    /// Gives up a channel that waits for us. Whether it still did, so that it must be rejected.
    pub(super) fn refuse(&mut self, remote: u64, serial: u64) -> bool {
        match self.remotes.get(&remote) {
            Some(Remote::Pending(pending)) if pending.serial == serial => {
                let name = pending.name.clone();
                self.remotes.remove(&remote);
                self.forget_incoming(&name, remote);
                true
            }
            _ => false,
        }
    }

    /// Gives up channels that have waited for too long; they must be rejected.
    pub(super) fn refuse_expired(&mut self, now: Instant) -> Vec<u64> {
        let expired: Vec<(u64, u64)> = self
            .pending()
            .filter(|(_, pending)| pending.deadline <= now)
            .map(|(remote, pending)| (remote, pending.serial))
            .collect();
        expired
            .into_iter()
            .filter(|(remote, serial)| self.refuse(*remote, *serial))
            .map(|(remote, _)| remote)
            .collect()
    }

    /// When the next channel has waited for too long.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.pending().map(|(_, pending)| pending.deadline).min()
    }

    /// What the messages of channels that wait for us cost together.
    pub(super) fn pending_cost(&self) -> usize {
        self.pending().map(|(_, pending)| pending.cost()).sum()
    }

    /// Who gets a message that the remote sends on its channel `remote`.
    pub(super) fn target(&mut self, remote: u64) -> Target<'_, C> {
        match self.remotes.get_mut(&remote) {
            Some(Remote::Open { local }) => match self.locals.get(local) {
                Some(local) => Target::Channel(&local.channel),
                None => Target::Closed,
            },
            Some(Remote::Pending(pending)) => Target::Pending(&mut pending.messages),
            None if remote <= self.last_remote => Target::Closed,
            None => Target::Nobody,
        }
    }

    /// Forgets everything and returns the channels that were open.
    pub(super) fn clear(&mut self) -> Vec<C> {
        let channels = self.locals.drain().map(|(_, local)| local.channel).collect();
        *self = Self::new();
        channels
    }

    fn pending(&self) -> impl Iterator<Item = (u64, &Pending)> {
        self.remotes.iter().filter_map(|(id, remote)| match remote {
            Remote::Pending(pending) => Some((*id, pending)),
            Remote::Open { .. } => None,
        })
    }

    fn canonical(&self, name: &Name) -> Name {
        self.aliases.get(name).unwrap_or(name).clone()
    }

    /// The oldest channel that waits for us under one of the names.
    fn take_incoming(&mut self, name: &Name, others: &[Name]) -> Option<(u64, Pending)> {
        for name in std::iter::once(name).chain(others) {
            let Some(info) = self.infos.get_mut(name) else { continue };
            let Some(remote) = info.incoming.pop_front() else { continue };
            self.collect(name);
            if let Some(Remote::Pending(pending)) = self.remotes.remove(&remote) {
                return Some((remote, pending));
            }
        }
        None
    }

    fn forget_incoming(&mut self, name: &Name, remote: u64) {
        if let Some(info) = self.infos.get_mut(name) {
            info.incoming.retain(|other| *other != remote);
        }
        self.collect(name);
    }

    fn forget_open(&mut self, name: &Name) {
        if let Some(info) = self.infos.get_mut(name) {
            info.open = None;
        }
        self.collect(name);
    }

    fn collect(&mut self, name: &Name) {
        let unused = |info: &Info| {
            info.open.is_none() && info.incoming.is_empty() && info.outgoing.is_empty()
        };
        if self.infos.get(name).is_some_and(unused)
            && let Some(info) = self.infos.remove(name)
        {
            for alias in &info.aliases {
                self.aliases.remove(alias);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::PENDING_TIMEOUT;
    use super::*;

    fn name(id: u8) -> Name {
        Name { protocol: "test".into(), id: vec![id] }
    }

    fn open(table: &mut Table<u64>, id: u8) -> (u64, bool) {
        let (local, pending) = table.open(&name(id), &[], |local| local).unwrap();
        (local, pending.is_some())
    }

    fn remote_open(
        table: &mut Table<u64>,
        remote: u64,
        id: u8,
    ) -> Result<RemoteOpened<u64>, &'static str> {
        table.remote_open(remote, &name(id), Bytes::new(), Instant::now())
    }

    fn pending(opened: Result<RemoteOpened<u64>, &'static str>) -> u64 {
        match opened {
            Ok(RemoteOpened::Pending { serial }) => serial,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn either_side_may_open_first() {
        let mut table = Table::new();
        assert_eq!(open(&mut table, 1), (1, false));
        assert_eq!(remote_open(&mut table, 1, 1), Ok(RemoteOpened::Paired(1)));
        pending(remote_open(&mut table, 2, 2));
        assert_eq!(open(&mut table, 2), (2, true));
        assert!(matches!(table.target(1), Target::Channel(1)));
        assert!(matches!(table.target(2), Target::Channel(2)));
        assert!(matches!(table.target(3), Target::Nobody));
        assert!(matches!(table.target(1 << 36), Target::Nobody));
    }

    #[test]
    fn one_name_is_open_once() {
        let mut table = Table::new();
        open(&mut table, 1);
        let again = table.open(&name(1), &[], |local| local);
        assert!(matches!(again, Err(MuxError::AlreadyOpen)));
        assert_eq!(remote_open(&mut table, 1, 1), Ok(RemoteOpened::Paired(1)));
        assert_eq!(remote_open(&mut table, 2, 1), Ok(RemoteOpened::Refused));
    }

    #[test]
    fn ids_of_paired_channels_are_used_again_at_once_and_others_after_the_answer() {
        let mut table = Table::new();
        open(&mut table, 1);
        remote_open(&mut table, 1, 1).unwrap();
        assert!(table.close(1));
        assert!(!table.close(1));
        assert_eq!(open(&mut table, 2).0, 1);
        assert!(table.close(1));
        assert_eq!(open(&mut table, 3).0, 2);
        assert_eq!(table.remote_reject(1), Ok(None));
        assert_eq!(open(&mut table, 4).0, 1);
    }

    #[test]
    fn a_channel_closed_before_the_answer_does_not_pair() {
        let mut table = Table::new();
        open(&mut table, 1);
        table.close(1);
        open(&mut table, 1);
        assert_eq!(remote_open(&mut table, 1, 1), Ok(RemoteOpened::Ignored));
        assert_eq!(table.remote_close(1), RemoteClosed::Ignored);
        assert_eq!(remote_open(&mut table, 1, 1), Ok(RemoteOpened::Paired(2)));
        assert_eq!(table.remote_close(1), RemoteClosed::Closed(2));
    }

    #[test]
    fn a_reject_closes_and_a_second_one_is_a_violation() {
        let mut table = Table::new();
        open(&mut table, 1);
        assert_eq!(table.remote_reject(1), Ok(Some(1)));
        assert!(table.remote_reject(1).is_err());
        assert!(table.remote_reject(1 << 36).is_err());
        open(&mut table, 1);
        remote_open(&mut table, 1, 1).unwrap();
        assert!(table.remote_reject(1).is_err());
    }

    #[test]
    fn a_channel_that_the_remote_closed_while_it_waited_is_refused() {
        let mut table = Table::new();
        let serial = pending(remote_open(&mut table, 1, 1));
        assert_eq!(table.remote_close(1), RemoteClosed::Refused);
        assert!(!table.refuse(1, serial));
        assert_eq!(open(&mut table, 1), (1, false));
    }

    #[test]
    fn waiting_channels_expire() {
        let mut table = Table::<u64>::new();
        let now = Instant::now();
        table.remote_open(1, &name(1), Bytes::new(), now).unwrap();
        assert_eq!(table.next_deadline(), Some(now + PENDING_TIMEOUT));
        assert!(table.refuse_expired(now).is_empty());
        assert_eq!(table.refuse_expired(now + PENDING_TIMEOUT), vec![1]);
        assert_eq!(table.next_deadline(), None);
        assert!(table.infos.is_empty() && table.remotes.is_empty());
    }

    #[test]
    fn an_alias_pairs_in_both_orders() {
        let (mut table, other) = (Table::new(), vec!["old".to_owned()]);
        let old = Name { protocol: "old".into(), id: vec![1] };
        table.open(&name(1), &other, |local| local).unwrap();
        let paired = table.remote_open(1, &old, Bytes::new(), Instant::now());
        assert_eq!(paired, Ok(RemoteOpened::Paired(1)));
        table.close(1);
        assert!(table.aliases.is_empty() && table.infos.is_empty());
        pending(table.remote_open(1, &old, Bytes::new(), Instant::now()));
        let (_, waited) = table.open(&name(1), &other, |local| local).unwrap();
        assert!(waited.is_some());
    }

    #[test]
    fn hostile_ids_are_violations_and_floods_are_refused() {
        let mut table = Table::new();
        assert!(remote_open(&mut table, 0, 1).is_err());
        assert!(remote_open(&mut table, 2, 1).is_err());
        assert!(remote_open(&mut table, 1 << 36, 1).is_err());
        let limit = MAX_REMOTE_CHANNELS as u64;
        for remote in 1..=limit {
            pending(remote_open(&mut table, remote, 1));
        }
        assert!(remote_open(&mut table, 1, 1).is_err());
        for remote in limit + 1..limit + 5000 {
            assert_eq!(remote_open(&mut table, remote, 2), Ok(RemoteOpened::Refused));
        }
        assert_eq!(table.remotes.len(), MAX_REMOTE_CHANNELS);
    }
}
