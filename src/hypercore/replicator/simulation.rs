//! Two and more state machines that exchange their messages in memory, without storage or clock.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Violation;
use super::local::LocalCore;
use super::local::tests::{FakeCore, full_roots};
use super::peer::{Outcome, Peer, Role};
use super::requests::{Asked, Downloads, PeerId};
use super::schedule::STALL;
use crate::hypercore::messages::{
    Data, DataBlock, DataUpgrade, Message, NoData, NoDataReason, Range, Request, Sync,
};

pub(super) const READER: Role = Role { downloading: true, uploading: true };
pub(super) const WRITER: Role = Role { downloading: false, uploading: true };

/// A core, what is downloaded of it, and the peers it is replicated with.
pub(super) struct Side {
    pub(super) core: FakeCore,
    pub(super) downloads: Downloads,
    pub(super) peers: Vec<Peer>,
    received: Vec<u64>,
}

impl Side {
    pub(super) fn new(core: FakeCore, role: Role, peers: usize, now: Instant) -> Self {
        let peers = (0..peers as u64).map(|id| Peer::new(PeerId(id), role, now)).collect();
        let mut downloads = Downloads::default();
        downloads.want_all(role.downloading);
        Self { core, downloads, peers, received: Vec::new() }
    }

    pub(super) fn poll(&mut self, peer: usize, now: Instant) -> Vec<Message> {
        let mut out = self.peers[peer].poll(&self.core, &mut self.downloads, now);
        while let Some(request) = self.peers[peer].uploads.pop() {
            out.push(self.answer(&request));
        }
        out
    }

    pub(super) fn answer(&self, request: &Request) -> Message {
        let block = request.block.map(|block| block.index);
        if block.is_some_and(|index| !self.core.has(index)) {
            let reason = NoDataReason::NotAvailable;
            return Message::NoData(NoData { request: request.id, reason });
        }
        Message::Data(Data {
            request: request.id,
            fork: request.fork,
            block: block.map(|index| DataBlock {
                index,
                value: Bytes::from_static(b"x"),
                nodes: Vec::new(),
            }),
            upgrade: request.upgrade.map(|upgrade| DataUpgrade {
                start: upgrade.start,
                length: upgrade.length,
                nodes: Vec::new(),
                additional_nodes: Vec::new(),
                signature: None,
            }),
            ..Data::default()
        })
    }

    /// Takes a message and applies what it delivers, as a storage that is always right would.
    pub(super) fn take(
        &mut self,
        peer: usize,
        message: Message,
        now: Instant,
    ) -> Result<(), Violation> {
        let Self { core, downloads, peers, received } = self;
        for delivery in peers[peer].receive(message, core, downloads, now)? {
            if let Some(upgrade) = &delivery.data.upgrade {
                core.length = upgrade.start + upgrade.length;
                core.nodes.extend(full_roots(core.length));
            }
            if let Some(block) = &delivery.data.block {
                received.push(block.index);
                core.blocks.insert(block.index);
                if let Asked::Block { index, nodes } = delivery.outstanding.asked {
                    for level in 0..nodes {
                        let node = 2 * (index >> level << level) + (1 << level) - 1;
                        core.nodes.extend([node, node ^ (2 << level)]);
                    }
                }
            }
            peers[peer].finish(&delivery, Outcome::Applied, downloads)?;
        }
        Ok(())
    }
}

/// Passes messages between `a.peers[i]` and `b.peers[j]` until there are none.
pub(super) fn run(a: &mut Side, i: usize, b: &mut Side, j: usize, now: Instant) -> usize {
    let mut count = 0;
    loop {
        let (there, back) = (a.poll(i, now), b.poll(j, now));
        if there.is_empty() && back.is_empty() {
            return count;
        }
        count += there.len() + back.len();
        for message in there {
            b.take(j, message, now).unwrap();
        }
        for message in back {
            a.take(i, message, now).unwrap();
        }
    }
}

#[test]
fn a_reader_gets_every_block_of_a_writer_once() {
    let now = Instant::now();
    let mut writer = Side::new(FakeCore::writer(3000), WRITER, 1, now);
    let mut reader = Side::new(FakeCore { manifest: true, ..FakeCore::default() }, READER, 1, now);
    run(&mut writer, 0, &mut reader, 0, now);
    assert_eq!(reader.core.length, 3000);
    let mut blocks = reader.received.clone();
    blocks.sort_unstable();
    assert_eq!(blocks, (0..3000).collect::<Vec<_>>());
    assert_eq!(reader.downloads.claimed(), 0);
}

#[test]
fn appends_arrive_live_with_their_block_in_the_upgrade() {
    let now = Instant::now();
    let mut writer = Side::new(FakeCore::writer(5), WRITER, 1, now);
    let mut reader = Side::new(FakeCore { manifest: true, ..FakeCore::default() }, READER, 1, now);
    run(&mut writer, 0, &mut reader, 0, now);
    for length in 6..20 {
        writer.core = FakeCore::writer(length);
        let messages = run(&mut writer, 0, &mut reader, 0, now);
        assert_eq!(reader.core.contiguous_length(), length);
        // sync and range; request; data; sync and range back
        assert!(messages <= 7, "{messages} messages for one append");
    }
}

#[test]
fn readers_pass_blocks_on_to_each_other() {
    let now = Instant::now();
    let mut writer = Side::new(FakeCore::writer(100), WRITER, 1, now);
    let empty = || FakeCore { manifest: true, ..FakeCore::default() };
    let mut middle = Side::new(empty(), READER, 2, now);
    let mut end = Side::new(empty(), READER, 1, now);
    run(&mut middle, 1, &mut end, 0, now);
    run(&mut writer, 0, &mut middle, 0, now);
    run(&mut middle, 1, &mut end, 0, now);
    assert_eq!(end.core.contiguous_length(), 100);
}

#[test]
fn what_was_asked_of_a_peer_that_leaves_is_asked_of_another() {
    let now = Instant::now();
    let mut first = Side::new(FakeCore::writer(50), WRITER, 1, now);
    let mut second = Side::new(FakeCore::writer(50), WRITER, 1, now);
    let mut reader = Side::new(FakeCore::reader(50), READER, 2, now);
    for message in first.poll(0, now) {
        reader.take(0, message, now).unwrap();
    }
    assert!(!reader.poll(0, now).is_empty());
    assert_eq!(reader.downloads.claimed(), 50);
    run(&mut second, 0, &mut reader, 1, now);
    assert_eq!(reader.received.len(), 0);
    let Side { peers, downloads, .. } = &mut reader;
    peers[0].close(downloads);
    run(&mut second, 0, &mut reader, 1, now);
    assert_eq!(reader.core.contiguous_length(), 50);
    assert_eq!(reader.received.len(), 50);
}

#[test]
fn a_silent_peer_loses_its_requests_to_others_and_rests() {
    let now = Instant::now();
    let mut silent = Side::new(FakeCore::writer(50), WRITER, 1, now);
    let mut second = Side::new(FakeCore::writer(50), WRITER, 1, now);
    let mut reader = Side::new(FakeCore::reader(50), READER, 2, now);
    for message in silent.poll(0, now) {
        reader.take(0, message, now).unwrap();
    }
    reader.poll(0, now);
    assert_eq!(reader.peers[0].deadline(), Some(now + STALL));
    let later = now + STALL + Duration::from_millis(1);
    let cancels = reader.poll(0, later);
    assert_eq!(cancels.iter().filter(|m| matches!(m, Message::Cancel(_))).count(), 50);
    assert!(!cancels.iter().any(|message| matches!(message, Message::Request(_))));
    run(&mut second, 0, &mut reader, 1, later);
    assert_eq!(reader.core.contiguous_length(), 50);
}

#[test]
fn an_answer_before_the_one_it_builds_on_waits_for_it() {
    let now = Instant::now();
    let mut writer = Side::new(FakeCore::writer(8), WRITER, 1, now);
    let mut reader = Side::new(FakeCore::reader(8), READER, 1, now);
    for message in writer.poll(0, now) {
        reader.take(0, message, now).unwrap();
    }
    for message in reader.poll(0, now) {
        writer.take(0, message, now).unwrap();
    }
    for message in writer.poll(0, now).into_iter().rev() {
        reader.take(0, message, now).unwrap();
    }
    assert_eq!(reader.received[0], 0, "{:?}", reader.received);
    assert_eq!(reader.core.contiguous_length(), 8);
}

#[test]
fn a_peer_that_has_nothing_of_what_it_claims_is_left_alone() {
    let now = Instant::now();
    let mut liar = Side::new(FakeCore::writer(1000), WRITER, 1, now);
    let mut reader = Side::new(FakeCore::reader(1000), READER, 1, now);
    let claims = liar.poll(0, now);
    liar.core.blocks.clear();
    for message in claims {
        reader.take(0, message, now).unwrap();
    }
    let messages = run(&mut liar, 0, &mut reader, 0, now);
    assert!(messages < 3000, "{messages}");
    assert!(reader.peers[0].is_refusing());
    assert_eq!(reader.downloads.claimed(), 0);
}

#[test]
fn a_claim_of_more_blocks_than_there_are_changes_nothing() {
    let now = Instant::now();
    let mut reader = Side::new(FakeCore::reader(100), READER, 1, now);
    let everything = Range { drop: false, start: 1, length: (1 << 53) - 1 };
    let sync = Sync { length: 1 << 52, remote_length: 7, uploading: true, ..Sync::default() };
    reader.take(0, Message::Sync(sync), now).unwrap();
    reader.take(0, Message::Range(everything), now).unwrap();
    let asked = reader.poll(0, now);
    assert_eq!(asked.iter().filter(|m| matches!(m, Message::Request(_))).count(), 99);
}

#[test]
fn data_nobody_asked_for_is_a_violation_and_so_is_another_answer() {
    let now = Instant::now();
    let mut writer = Side::new(FakeCore::writer(8), WRITER, 1, now);
    let mut reader = Side::new(FakeCore::reader(8), READER, 1, now);
    let unasked = Message::Data(Data { request: 77, ..Data::default() });
    assert_eq!(reader.take(0, unasked, now), Err(Violation::Unasked));
    for message in writer.poll(0, now) {
        reader.take(0, message, now).unwrap();
    }
    reader.poll(0, now);
    let block = DataBlock { index: 7, value: Bytes::new(), nodes: Vec::new() };
    let other = Message::Data(Data { request: 1, block: Some(block), ..Data::default() });
    assert_eq!(reader.take(0, other, now), Err(Violation::WrongAnswer));
}

#[test]
fn two_sides_that_want_nothing_are_idle() {
    let now = Instant::now();
    let mut one = Side::new(FakeCore::writer(8), WRITER, 1, now);
    let mut other = Side::new(FakeCore::writer(8), WRITER, 1, now);
    assert!(!one.peers[0].is_idle());
    run(&mut one, 0, &mut other, 0, now);
    assert!(one.peers[0].is_idle() && other.peers[0].is_idle());
}

/// What a side puts out, by kind.
pub(super) fn requests<'a>(messages: &'a [Message]) -> Vec<&'a Request> {
    let request = |message: &'a Message| match message {
        Message::Request(request) => Some(request),
        _ => None,
    };
    messages.iter().filter_map(request).collect()
}

#[test]
fn a_quick_peer_takes_over_from_a_slow_one_which_is_told() {
    let now = Instant::now();
    let mut slow = Side::new(FakeCore::writer(50), WRITER, 1, now);
    let mut quick = Side::new(FakeCore::writer(50), WRITER, 1, now);
    let mut reader = Side::new(FakeCore::reader(50), READER, 2, now);
    for message in slow.poll(0, now) {
        reader.take(0, message, now).unwrap();
    }
    assert_eq!(requests(&reader.poll(0, now)).len(), 50);
    run(&mut quick, 0, &mut reader, 1, now);
    assert_eq!(reader.received.len(), 0, "the other may still send it");
    let due = reader.peers[1].deadline().unwrap();
    assert!(due < now + STALL);
    for round in 1..20 {
        run(&mut quick, 0, &mut reader, 1, now + round * (due - now));
    }
    assert_eq!(reader.core.contiguous_length(), 50);
    assert_eq!(reader.received.len(), 50);
    assert_eq!(reader.peers[1].counters.hotswaps, 50);
    let cancels = reader.poll(0, due);
    assert_eq!(cancels.iter().filter(|m| matches!(m, Message::Cancel(_))).count(), 50);
    assert_eq!(reader.downloads.claimed(), 0);
    // What was on its way when it was cancelled is let pass, once a request.
    let late = |request| Message::Data(Data { request, ..Data::default() });
    for request in 1..=50 {
        reader.take(0, late(request), due).unwrap();
    }
    assert_eq!(reader.take(0, late(50), due), Err(Violation::Unasked));
}

#[test]
fn only_the_blocks_that_somebody_waits_for_are_asked_for_single_ones_first() {
    let now = Instant::now();
    let mut writer = Side::new(FakeCore::writer(3000), WRITER, 1, now);
    let mut reader = Side::new(FakeCore::reader(3000), READER, 1, now);
    reader.downloads.want_all(false);
    run(&mut writer, 0, &mut reader, 0, now);
    assert_eq!(reader.received, [] as [u64; 0]);
    reader.downloads.want(1000..1003);
    reader.downloads.want(2500..2501);
    let asked = reader.poll(0, now);
    let asked: Vec<_> =
        requests(&asked).iter().map(|r| (r.block.unwrap().index, r.priority)).collect();
    assert_eq!(asked, [(2500, 1), (1000, 0), (1001, 0), (1002, 0)]);
}

#[test]
fn a_byte_is_found_by_asking_for_hashes() {
    let now = Instant::now();
    let mut writer = Side::new(FakeCore::writer(64), WRITER, 1, now);
    let mut reader = Side::new(FakeCore::reader(64), READER, 1, now);
    reader.downloads.want_all(false);
    let id = reader.downloads.seeks.add(1234);
    for message in writer.poll(0, now) {
        reader.take(0, message, now).unwrap();
    }
    let asked = reader.poll(0, now);
    let [request] = requests(&asked)[..] else { panic!("{asked:?}") };
    assert_eq!(request.seek.map(|seek| seek.bytes), Some(1234));
    assert_eq!(request.hash.map(|hash| hash.nodes), Some(6));
    assert!(requests(&reader.poll(0, now)).is_empty(), "one at a time");
    let refusal = NoData { request: request.id, reason: NoDataReason::NotAvailable };
    reader.take(0, Message::NoData(refusal), now).unwrap();
    assert!(requests(&reader.poll(0, now)).is_empty(), "it knows no way");
    reader.downloads.seeks.remove(id);
    assert!(reader.downloads.seeks.is_empty());
}

#[test]
fn a_peer_hears_of_the_blocks_it_wants_and_of_the_last_ones() {
    let now = Instant::now();
    let mut middle = Side::new(FakeCore::reader(10_000), READER, 1, now);
    let sync = Sync { length: 10_000, downloading: true, uploading: true, ..Sync::default() };
    middle.take(0, Message::Sync(sync), now).unwrap();
    middle.poll(0, now);
    let told = |middle: &mut Side, index| {
        middle.core.blocks.insert(index);
        middle.peers[0].have(index, 1);
        let out = middle.poll(0, now);
        out.contains(&Message::Range(Range { drop: false, start: index, length: 1 }))
    };
    assert!(!told(&mut middle, 5000));
    assert!(told(&mut middle, 9990));
    let want = crate::hypercore::messages::Want { start: 4096, length: 4096, any: false };
    middle.take(0, Message::Want(want), now).unwrap();
    assert!(told(&mut middle, 5001));
    middle.take(0, Message::Unwant(want), now).unwrap();
    assert!(!told(&mut middle, 5002));
    for index in 0..200 {
        middle.peers[0].have(2 * index, 1);
    }
    assert!(middle.peers[0].haves.len() <= 64);
}

#[test]
fn wants_and_ranges_at_the_limits_cost_a_bounded_answer() {
    let now = Instant::now();
    let mut writer = Side::new(FakeCore::reader(10_000), WRITER, 1, now);
    writer.core.blocks.insert(7000);
    let most = (1 << 53) - 1;
    for start in (0..2000).chain([most]) {
        for any in [false, true] {
            let want = crate::hypercore::messages::Want { start, length: most, any };
            writer.take(0, Message::Want(want), now).unwrap();
        }
        let range = Range { drop: start % 2 == 0, start, length: most };
        writer.take(0, Message::Range(range), now).unwrap();
    }
    let mut answers = 0;
    while !writer.poll(0, now).is_empty() {
        answers += 1;
        assert!(answers <= 513);
    }
}

#[test]
fn cleared_blocks_are_told_of_and_asked_of_others() {
    let now = Instant::now();
    let mut holder = Side::new(FakeCore::writer(100), WRITER, 1, now);
    let mut reader = Side::new(FakeCore::reader(100), READER, 1, now);
    for message in holder.poll(0, now) {
        reader.take(0, message, now).unwrap();
    }
    for index in 20..30 {
        holder.core.blocks.remove(&index);
    }
    holder.peers[0].dropped(20, 10);
    run(&mut holder, 0, &mut reader, 0, now);
    assert_eq!(reader.received.len(), 90);
    assert!(!reader.peers[0].is_refusing());
    holder.core.blocks.extend(20..30);
    run(&mut holder, 0, &mut reader, 0, now);
    assert_eq!(reader.core.contiguous_length(), 100);
}

#[test]
fn what_is_appended_behind_a_gap_is_told_of() {
    let now = Instant::now();
    let mut holder = Side::new(FakeCore::writer(100), WRITER, 1, now);
    let mut reader = Side::new(FakeCore::reader(100), READER, 1, now);
    run(&mut holder, 0, &mut reader, 0, now);
    for index in 20..30 {
        holder.core.blocks.remove(&index);
    }
    holder.peers[0].dropped(20, 10);
    run(&mut holder, 0, &mut reader, 0, now);
    holder.core.length = 103;
    holder.core.blocks.extend(100..103);
    let told = holder.poll(0, now);
    let range = Message::Range(Range { drop: false, start: 100, length: 3 });
    assert!(told.contains(&range), "{told:?}");
}
