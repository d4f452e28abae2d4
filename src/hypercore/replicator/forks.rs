//! Following a peer to a later fork of the log, and what a change of our own fork means for a peer.
//!
//! First all of the new tree is asked for, which its signature covers; then, one path of hashes at a
//! time, where it leaves ours. One peer is followed at a time, and only so often: a writer that keeps
//! cutting its log costs a few messages a second.

use std::time::{Duration, Instant};

use super::expected::ExpectedNodes;
use super::local::LocalCore;
use super::peer::Peer;
use super::requests::{Asked, Downloads, Outstanding};
use crate::hypercore::core::Path;
use crate::hypercore::messages::Sync;

/// How many forks are followed at once, and after how long one more.
const BURST: u32 = 64;
const INTERVAL: Duration = Duration::from_secs(1);

/// Where a peer is being followed to.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// The fork that is being followed, and what is to be asked for next.
    path: Option<(u64, Path)>,
    /// The fork of which the peer has shown too little; it is asked again when it says something new.
    pub(super) refused: Option<u64>,
}

/// How often a core may be reorganized.
#[derive(Debug)]
pub(super) struct ForkLimit {
    left: u32,
    since: Option<Instant>,
}

impl Default for ForkLimit {
    fn default() -> Self {
        Self { left: BURST, since: None }
    }
}

impl ForkLimit {
    fn allow(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_secs() / INTERVAL.as_secs();
        if passed > 0 {
            let more = u32::try_from(passed).unwrap_or(BURST);
            self.left = self.left.saturating_add(more).min(BURST);
            self.since = Some(now);
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

impl Peer {
    /// Forgets what was about our former fork, if it has changed.
    pub(super) fn notice_fork(&mut self, core: &impl LocalCore, downloads: &mut Downloads) {
        downloads.follow_fork(core);
        if self.fork == core.fork() {
            return;
        }
        self.fork = core.fork();
        self.upgrade_refused = false;
        self.expected = ExpectedNodes::default();
        self.wanted.clear();
    }

    /// Asks for what is needed to become the fork that the peer has.
    pub(super) fn follow_fork(
        &mut self,
        remote: Sync,
        core: &impl LocalCore,
        downloads: &mut Downloads,
        now: Instant,
    ) {
        let wanted = self.role.downloading || core.is_writer() && self.may_download;
        let refused = self.following.refused == Some(remote.fork) || self.is_refusing();
        if !wanted || !remote.uploading || remote.length == 0 || refused {
            return;
        }
        if self.resting_until.is_some() {
            return;
        }
        if let Some((fork, path)) = self.following.path.take() {
            if fork == remote.fork {
                let index = self.leaf_of(path);
                let asked = Asked::Path { index, levels: path.levels };
                return self.ask(asked, None, false, core, now);
            }
            downloads.upgrade_done(self.id);
        }
        if !downloads.claim_upgrade(self.id) {
            return;
        }
        if !downloads.forks.allow(now) {
            downloads.upgrade_done(self.id);
            self.resting_until = Some(now + INTERVAL);
            return;
        }
        let manifest = core.needs_manifest() && remote.has_manifest;
        self.ask(Asked::Fork { length: remote.length }, None, manifest, core, now);
    }

    /// A block whose leaf the peer can show: the last it may have, because logs are mostly cut near
    /// their end.
    fn leaf_of(&self, path: Path) -> u64 {
        let last = path.end - 1;
        if self.bits.has(last) {
            return last;
        }
        self.bits.next_set(path.start, path.end).unwrap_or(last)
    }

    /// The fork is signed; this path of it is needed next. The peer may have a later one by now.
    pub(super) fn ask_path(&mut self, fork: u64, path: Path) {
        self.following.path = Some((fork, path));
    }

    /// The peer shows too little of its fork, or it is of no use here.
    pub(super) fn refuse_fork(&mut self, outstanding: &Outstanding) {
        self.following.refused = Some(outstanding.fork);
    }

    /// Lets go of a fork unless more of it is to be asked for.
    pub(super) fn settle_fork(&mut self, applied: bool, downloads: &mut Downloads) {
        if !applied {
            self.following.path = None;
        }
        if self.following.path.is_none() {
            downloads.upgrade_done(self.id);
        }
    }

    /// Whether a request is about a fork that does not count any more.
    pub(super) fn is_stale(&self, outstanding: &Outstanding, core: &impl LocalCore) -> bool {
        let theirs = self.remote.map_or(outstanding.fork, |remote| remote.fork);
        let ours = if outstanding.asked.is_fork() { theirs } else { core.fork() };
        outstanding.fork != ours || outstanding.fork != theirs
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::local::LocalCore;
    use super::super::local::tests::FakeCore;
    use super::super::peer::Outcome;
    use super::super::simulation::{READER, Side, WRITER, requests, run};
    use crate::hypercore::core::Path;
    use crate::hypercore::messages::{
        Message, NoData, NoDataReason, Range, Request, RequestUpgrade, Sync,
    };

    #[test]
    fn refusals_of_a_former_fork_say_nothing_of_the_new_one() {
        let now = Instant::now();
        let mut writer = Side::new(FakeCore::writer(50), WRITER, 1, now);
        let mut reader = Side::new(FakeCore::reader(50), READER, 1, now);
        for message in writer.poll(0, now) {
            reader.take(0, message, now).unwrap();
        }
        let asked = reader.poll(0, now);
        assert_eq!(asked.iter().filter(|m| matches!(m, Message::Request(_))).count(), 50);
        // Both become another fork while the requests are on their way.
        writer.core = FakeCore { fork: 1, common: 10, ..FakeCore::writer(40) };
        reader.core = FakeCore { fork: 1, common: 10, ..FakeCore::reader(40) };
        let told = writer.poll(0, now);
        let drop = Range { drop: true, start: 10, length: 40 };
        assert!(told.contains(&Message::Range(drop)), "{told:?}");
        for message in told {
            reader.take(0, message, now).unwrap();
        }
        for message in asked {
            if let Message::Request(request) = message {
                let reason = NoDataReason::NotAvailable;
                let refused = Message::NoData(NoData { request: request.id, reason });
                reader.take(0, refused, now).unwrap();
            }
        }
        assert!(!reader.peers[0].is_refusing());
        run(&mut writer, 0, &mut reader, 0, now);
        assert_eq!(reader.core.contiguous_length(), 40);
    }

    #[test]
    fn a_peer_that_always_has_a_later_fork_is_asked_a_few_times_and_then_once_a_second() {
        let start = Instant::now();
        let mut reader = Side::new(FakeCore::reader(50), READER, 1, start);
        let mut asked = 0;
        for fork in 1..10_000 {
            // One round in a millisecond.
            let now = start + Duration::from_millis(fork);
            let sync = Sync { fork, length: 9, uploading: true, ..Sync::default() };
            reader.take(0, Message::Sync(sync), now).unwrap();
            for message in reader.poll(0, now) {
                let Message::Request(request) = message else { continue };
                asked += 1;
                assert_eq!(request.fork, fork);
                let no = NoData { request: request.id, reason: NoDataReason::NotAvailable };
                reader.take(0, Message::NoData(no), now).unwrap();
            }
        }
        assert!((64..=74).contains(&asked), "{asked}");
        assert!(reader.peers[0].outstanding.is_empty());
    }

    #[test]
    fn a_fork_that_was_overtaken_is_not_asked_on_about() {
        let now = Instant::now();
        let mut reader = Side::new(FakeCore::reader(40), READER, 1, now);
        let has =
            |fork, length| Message::Sync(Sync { fork, length, uploading: true, ..Sync::default() });
        let asked = |reader: &mut Side| {
            let messages = reader.poll(0, now);
            let requests = requests(&messages);
            let [request] = requests.as_slice() else { panic!("{requests:?}") };
            (request.id, request.fork, request.upgrade, request.hash)
        };
        reader.take(0, has(1, 20), now).unwrap();
        let (id, fork, upgrade, _) = asked(&mut reader);
        assert_eq!((fork, upgrade), (1, Some(RequestUpgrade { start: 0, length: 20 })));
        let request = Request { id, fork, upgrade, ..Request::default() };
        let Message::Data(data) = reader.answer(&request) else { panic!("no answer") };
        let Side { core, downloads, peers, .. } = &mut reader;
        let delivered = peers[0].receive(Message::Data(data), core, downloads, now).unwrap();
        // While that is looked at, the peer cuts its log again.
        peers[0].receive(has(2, 4), core, downloads, now).unwrap();
        peers[0].ask_path(1, Path { start: 0, end: 16, levels: 4 });
        peers[0].finish(&delivered[0], Outcome::Applied, downloads).unwrap();
        let all = Some(RequestUpgrade { start: 0, length: 4 });
        assert_eq!(asked(&mut reader), (id + 1, 2, all, None));
    }
}
