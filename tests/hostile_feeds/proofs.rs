//! Proofs that were changed: none is believed. `MUTATIONS` says how many (3,000 unless set).

use alex_p2p::crypto::KeyPair;
use alex_p2p::hypercore::messages::{Message, RequestNode, RequestSeek, RequestUpgrade};
use alex_p2p::hypercore::{
    Applied, Core, CreateOptions, Data, Manifest, MemoryStorage, OpenOptions, Request,
};
use bytes::Bytes;

use crate::dice::Dice;

const LENGTH: u64 = 41;
/// What the readers have that are not empty.
const KNOWN: u64 = 23;

fn block(index: u64) -> Bytes {
    vec![index as u8; 1 + (index * 5 % 60) as usize].into()
}

fn reader(source: &Core) -> Core {
    Core::open(&MemoryStorage::new(), *source.key(), OpenOptions::default()).unwrap()
}

/// What a message is answered to, and by whom it is heard.
struct Valid {
    data: Data,
    /// What the reader applied before.
    before: Option<Data>,
}

fn valid(source: &Core, first: &Data) -> Vec<Valid> {
    let mut all = Vec::new();
    let mut put = |request: Request, before: Option<&Data>| {
        let Ok(Some(data)) = source.prove(&request) else { return };
        all.push(Valid { data, before: before.cloned() });
    };
    let node = |index, nodes| Some(RequestNode { index, nodes });
    let whole = Request { id: 1, manifest: true, ..Request::default() };
    let from = |start, length| Some(RequestUpgrade { start, length });
    for index in 0..LENGTH {
        put(Request { block: node(index, 0), upgrade: from(0, LENGTH), ..whole.clone() }, None);
    }
    for length in 1..LENGTH {
        put(Request { upgrade: from(0, length), ..whole.clone() }, None);
    }
    let later = Request { id: 1, upgrade: from(KNOWN, LENGTH - KNOWN), ..Request::default() };
    put(later.clone(), Some(first));
    for index in 0..KNOWN {
        let known = reader(source);
        known.apply(first).unwrap();
        let nodes = known.missing_nodes(2 * index).unwrap();
        let asked = Request { id: 1, block: node(index, nodes), ..Request::default() };
        put(asked.clone(), Some(first));
        put(
            Request {
                block: None,
                hash: asked.block.map(|b| RequestNode { index: 2 * index, ..b }),
                ..asked
            },
            Some(first),
        );
        put(Request { block: node(KNOWN + index % 18, 0), ..later.clone() }, Some(first));
        let seek = Some(RequestSeek { bytes: 1 + index * 20, padding: 0 });
        put(Request { seek, upgrade: from(0, LENGTH), ..whole.clone() }, None);
    }
    all
}

/// A message with a byte of its encoding changed, put in or taken out; `None` when it cannot be read then.
fn mutated(data: &Data, dice: &mut Dice) -> Option<Data> {
    let mut bytes = Message::Data(data.clone()).encode().to_vec();
    for _ in 0..=dice.below(8) / 7 {
        let at = dice.below(bytes.len() as u64) as usize;
        match dice.below(10) {
            0 => bytes.truncate(at),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, dice.next() as u8),
            3 => bytes[at] = [0, 1, 127, 128, 252, 253, 254, 255][dice.below(8) as usize],
            _ => bytes[at] ^= 1 << dice.below(8),
        }
        if bytes.is_empty() {
            return None;
        }
    }
    match Message::decode(3, &bytes.into()) {
        Ok(Some(Message::Data(changed))) => Some(changed),
        _ => None,
    }
}

/// What of a message is neither proven nor believed.
fn essence(data: &Data) -> Data {
    Data { request: 0, ..data.clone() }
}

#[tokio::test]
async fn no_proof_that_was_changed_is_believed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let wanted: u64 = number("MUTATIONS").unwrap_or(3000);
    let keys = KeyPair::from_seed(&[9; 32]);
    let manifest = Manifest::single(keys.public_key());
    let options = CreateOptions { manifest, writer: Some(keys), compat: false };
    let source = Core::create(&MemoryStorage::new(), options).unwrap();
    source.append((0..KNOWN).map(block).collect()).await.unwrap();
    let upgrade = Some(RequestUpgrade { start: 0, length: KNOWN });
    let first = Request { id: 1, manifest: true, upgrade, ..Request::default() };
    let first = source.prove(&first).unwrap().unwrap();
    source.append((KNOWN..LENGTH).map(block).collect()).await.unwrap();

    let all = valid(&source, &first);
    let (mut unreadable, mut refused) = (0, 0);
    let mut dice = Dice::new(11);
    while unreadable + refused < wanted {
        let valid = &all[dice.below(all.len() as u64) as usize];
        let Some(changed) = mutated(&valid.data, &mut dice) else {
            unreadable += 1;
            continue;
        };
        if essence(&changed) == essence(&valid.data) {
            continue;
        }
        let reader = reader(&source);
        if let Some(before) = &valid.before {
            reader.apply(before).unwrap();
        }
        let state = (reader.state(), reader.tree_hash());
        match reader.apply(&changed) {
            Err(_) => assert_eq!((reader.state(), reader.tree_hash()), state, "{changed:?}"),
            // It says nothing that was not known, or nothing at all.
            Ok(applied) if applied == Applied::default() => {
                assert_eq!((reader.state(), reader.tree_hash()), state, "{changed:?}");
            }
            // Less than was asked, and all of it true.
            Ok(_) => is_true(&reader, &source, &changed),
        }
        refused += 1;
    }
    println!("{} kinds of messages, {unreadable} unreadable, {refused} refused", all.len());
    for valid in &all {
        let reader = reader(&source);
        if let Some(before) = &valid.before {
            reader.apply(before).unwrap();
        }
        reader.apply(&valid.data).unwrap();
    }
}

/// Whether all that a reader believes is what the source says.
fn is_true(reader: &Core, source: &Core, data: &Data) {
    let length = reader.length();
    assert!(length == 0 || length == KNOWN || length == LENGTH, "{data:?}");
    for index in 0..length {
        if let Some(bytes) = reader.get(index).unwrap() {
            assert_eq!(bytes, block(index), "{data:?}");
        }
    }
    if length == LENGTH {
        assert_eq!(reader.tree_hash(), source.tree_hash(), "{data:?}");
    }
}
