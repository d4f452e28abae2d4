//! What people type and paste, and what feeds and peers say in JSON: keys, invite links, bootstrap nodes,
//! catalog entries, messages of `alex/p2p`. What is taken reads back as it was written.

use alex_p2p::catalog::entry::{self, Entry};
use alex_p2p::hyperdht::BootstrapNode;
use alex_p2p::identity::{invite_link, parse_key};
use alex_p2p::transfer::message::{Hello, Message};

/// The first byte is the decoder, the rest its input.
pub fn run(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which {
        0 => text(bytes, key),
        1 => text(bytes, bootstrap_nodes),
        2 => catalog_entry(bytes),
        3 => hello(bytes),
        4..=8 => message(u32::from(*which) - 4, bytes),
        _ => {
            text(data, key);
            text(data, bootstrap_nodes);
            catalog_entry(data);
            hello(data);
            (0..5).for_each(|kind| message(kind, data));
        }
    }
}

fn text(bytes: &[u8], take: fn(&str)) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        take(text);
    }
}

fn key(text: &str) {
    match parse_key(text) {
        Ok(parsed) => {
            let link = invite_link(&parsed.key, parsed.nickname.as_deref());
            let again = parse_key(&link).unwrap();
            assert_eq!(again.key, parsed.key);
            // A link takes a trimmed name of 64 characters.
            let name = |name: String| name.trim().chars().take(64).collect::<String>();
            assert_eq!(again.nickname.map(name), parsed.nickname.map(name));
            let alone = parse_key(&parsed.key.to_z32()).unwrap();
            assert_eq!((alone.key, alone.nickname), (parsed.key, None));
        }
        Err(error) => assert!(error.to_string().len() < 400, "{error}"),
    }
}

fn bootstrap_nodes(text: &str) {
    for item in text.split(',') {
        let Ok(node) = item.parse::<BootstrapNode>() else { continue };
        assert!(node.port != 0 && (node.host.is_some() || node.address.is_some()));
        assert_eq!(node.to_string().parse().as_ref(), Ok(&node), "{item:?}");
    }
}

fn catalog_entry(bytes: &[u8]) {
    let Ok(Entry::Added(book)) = entry::decode(bytes) else { return };
    let shown = entry::shown((*book).clone());
    assert!(!shown.title.chars().any(char::is_control));
    // Numbers that became text may be longer than they came, and so beyond the limit.
    let Ok(written) = entry::encode_added(&book) else { return };
    let again = entry::decode_book(&written).unwrap();
    assert_eq!((again.id, again.title), (book.id, book.title));
    assert_eq!((again.size_bytes, again.added_at), (book.size_bytes, book.added_at));
    assert_eq!((again.author, again.isbn, again.format), (book.author, book.isbn, book.format));
}

fn hello(bytes: &[u8]) {
    let Ok(hello) = Hello::decode(bytes) else { return };
    assert!(hello.nickname.as_ref().is_none_or(|name| name.chars().count() <= 64));
    assert!(hello.features.len() <= 32);
    assert_eq!(Hello::decode(&hello.encode()).as_ref(), Ok(&hello));
}

fn message(kind: u32, bytes: &[u8]) {
    let Ok(message) = Message::decode(kind, bytes) else { return };
    let (kind, written) = message.encode();
    assert_eq!(Message::decode(kind, &written).as_ref(), Ok(&message));
}
