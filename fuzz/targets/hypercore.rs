//! `hypercore/alpha`: messages and manifests read back as they were written; any request to a core is
//! answered or refused; and no proof, whatever was done to it, makes a reader believe another log.

use std::sync::OnceLock;

use alex_p2p::crypto::KeyPair;
use alex_p2p::hypercore::messages::{
    Handshake, Message, RequestNode, RequestSeek, RequestUpgrade,
};
use alex_p2p::hypercore::{Core, CreateOptions, Data, Manifest, MemoryStorage, OpenOptions, Request};
use bytes::Bytes;

/// Blocks of the log that is proven.
const LENGTH: u64 = 13;

/// The first byte is what is tried, the rest its input.
pub fn run(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which & 15 {
        kind @ 0..=10 => message(u32::from(kind), bytes),
        11 => manifest(bytes),
        12 => handshake(bytes),
        _ => proofs(bytes),
    }
}

fn message(kind: u32, bytes: &[u8]) {
    let Ok(Some(message)) = Message::decode(kind, &Bytes::copy_from_slice(bytes)) else { return };
    let written = message.encode();
    assert_eq!(message.encode_parts().concat(), written);
    // JavaScript's integers end where ours are cut off, so all that is read can be written.
    assert_eq!(Message::decode(kind, &written).as_ref(), Ok(&Some(message)));
}

fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    let written = manifest.encode();
    let again = Manifest::decode(&written).unwrap();
    assert_eq!(again.encode(), written);
    assert!(manifest.is_of(&manifest.key()));
}

fn handshake(bytes: &[u8]) {
    let Ok(handshake) = Handshake::decode(bytes) else { return };
    assert_eq!(Handshake::decode(&handshake.encode()), Ok(handshake));
}

/// A reader of the log that takes proofs of requests as the input makes them, changed as it says.
fn proofs(bytes: &[u8]) {
    let runtime = runtime();
    let _inside = runtime.enter();
    let source = source();
    let storage = MemoryStorage::new();
    let reader = Core::open(&storage, *source.key(), OpenOptions::default()).unwrap();
    let mut program = bytes;
    while let Some(step) = byte(&mut program) {
        let Some(request) = request(step, &mut program) else { break };
        let Ok(Some(mut data)) = source.prove(&request) else { continue };
        if step & 1 != 0 && change(&mut data, &mut program).is_none() {
            break;
        }
        let _ = reader.apply(&data);
        check(&reader);
    }
    // What nobody made anew by the hand of the foe arrives all the same.
    let upgrade = Some(RequestUpgrade { start: reader.length(), length: LENGTH - reader.length() });
    if reader.length() < LENGTH {
        let request = Request { upgrade, manifest: true, ..Request::default() };
        reader.apply(&source.prove(&request).unwrap().unwrap()).unwrap();
    }
    for index in 0..LENGTH {
        let nodes = reader.missing_nodes(2 * index).unwrap();
        let block = Some(RequestNode { index, nodes });
        reader.apply(&source.prove(&Request { block, ..Request::default() }).unwrap().unwrap()).unwrap();
    }
    check(&reader);
    assert_eq!(reader.tree_hash(), source.tree_hash());
}

fn check(reader: &Core) {
    assert!(reader.length() <= LENGTH);
    for index in 0..reader.length() {
        if let Some(value) = reader.get(index).unwrap() {
            assert_eq!(value, block(index), "another block {index}");
        }
    }
}

fn request(step: u8, program: &mut &[u8]) -> Option<Request> {
    let mut number = || {
        let first = byte(program)?;
        Some(match first {
            0..=250 => u64::from(first),
            251..=253 => u64::MAX >> ((first - 251) * 11),
            _ => u64::from(first) << byte(program)?.min(56),
        })
    };
    let mut request = Request { id: 1, manifest: step & 2 != 0, ..Request::default() };
    match step >> 2 & 3 {
        0 => {}
        1 => request.hash = Some(RequestNode { index: number()?, nodes: number()? }),
        _ => request.block = Some(RequestNode { index: number()?, nodes: number()? }),
    }
    if step & 16 != 0 {
        request.seek = Some(RequestSeek { bytes: number()?, padding: number()? });
    }
    if step & 32 != 0 {
        request.upgrade = Some(RequestUpgrade { start: number()?, length: number()? });
    }
    Some(request)
}

/// Changes something in a proof: a byte of its encoding, or what its parts are.
fn change(data: &mut Data, program: &mut &[u8]) -> Option<()> {
    let (how, at, by) = (byte(program)?, usize::from(byte(program)?), byte(program)?);
    if how & 1 == 0 {
        let mut encoded = Message::Data(data.clone()).encode().to_vec();
        let index = (at + usize::from(how >> 4) * 256) % encoded.len();
        encoded[index] ^= by;
        let Ok(Some(Message::Data(changed))) = Message::decode(3, &encoded.into()) else {
            return Some(());
        };
        *data = changed;
        return Some(());
    }
    match how >> 1 & 7 {
        0 => data.block = None,
        1 => data.upgrade = None,
        2 => data.manifest = None,
        3 => data.fork = by.into(),
        4 => data.block.as_mut()?.index = by.into(),
        5 => data.upgrade.as_mut()?.nodes.truncate(at),
        6 => data.upgrade.as_mut()?.length = by.into(),
        _ => {
            let nodes = &mut data.block.as_mut()?.nodes;
            let first = *nodes.first()?;
            nodes.push(first);
        }
    }
    Some(())
}

fn block(index: u64) -> Bytes {
    vec![index as u8; (index * 5 % 17) as usize].into()
}

fn source() -> &'static Core {
    static SOURCE: OnceLock<Core> = OnceLock::new();
    SOURCE.get_or_init(|| {
        let pair = KeyPair::from_seed(&[3; 32]);
        let manifest = Manifest::single(pair.public_key());
        let options = CreateOptions { manifest, writer: Some(pair), compat: false };
        let core = Core::create(&MemoryStorage::new(), options).unwrap();
        runtime().block_on(core.append((0..LENGTH).map(block).collect())).unwrap();
        core
    })
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap())
}

fn byte(program: &mut &[u8]) -> Option<u8> {
    let (first, rest) = program.split_first()?;
    *program = rest;
    Some(*first)
}
