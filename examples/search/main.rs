//! How long searches take in a large catalog: `search ENTRIES.jsonl DIRECTORY [BOOKS]`.
//!
//! The entries of the file are multiplied to a million books (or as many as told) and published by a node
//! in the directory; what is there already is used again. Prints JSON lines: what publishing took, how
//! long the node takes to open and show a page, each kind of query, and over all of them. Times are in
//! milliseconds.

use std::path::Path;
use std::time::{Duration, Instant};

use alex_p2p::catalog::{Book, BookEntry, SearchOptions, Sort};
use alex_p2p::node::{Node, NodeOptions};
use serde_json::json;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How many books are published at once.
const BATCH: usize = 5000;
/// How often each query is asked.
const ROUNDS: usize = 3;

/// What people type, by kind.
const QUERIES: &[(&str, &[&str])] = &[
    ("nothing", &[""]),
    ("a letter", &["a", "s", "t", "z", "x", "m"]),
    ("two letters", &["th", "ha", "zo", "qu", "st"]),
    ("common", &["the", "of", "and", "love", "book", "secret", "john", "harry"]),
    ("typing", &["h", "hu", "hun", "hung", "hunge", "hunger", "hunger g", "hunger games"]),
    ("rare", &["silmarillion", "zorba", "quixote", "xenocide", "beowulf"]),
    (
        "two words",
        &["the zorba", "harry potter", "of the", "love story", "game of thrones", "the a"],
    ),
    ("common and rare", &["harry zorba", "the quixote", "john beowulf", "love silmarillion"]),
    ("author", &["stephen king", "tolkien", "j.k. rowling", "garcía márquez", "Collins", "james"]),
    ("isbn", &["9780000012345", "978-0-000-54321-0", "0439023483", "97800"]),
    ("no hit", &["qqqqqq", "zzz yyy", "the xqzw"]),
];

fn main() -> Outcome {
    let mut words = std::env::args().skip(1);
    let (Some(entries), Some(directory)) = (words.next(), words.next()) else {
        return Err("search ENTRIES.jsonl DIRECTORY [BOOKS]".into());
    };
    let count = words.next().map_or(Ok(1_000_000), |word| word.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        fill(Path::new(&entries), Path::new(&directory), count).await?;
        let start = Instant::now();
        let node = open(Path::new(&directory)).await?;
        let page = node.catalog().list(&Default::default())?;
        println!("{}", json!({ "reopen": ms(start.elapsed()), "books": page.total }));
        measure(&node)?;
        node.close().await;
        Ok(())
    })
}

async fn open(directory: &Path) -> Outcome<Node> {
    let mut options = NodeOptions::new(directory);
    options.bootstrap = Some(Vec::new());
    options.host = Some("127.0.0.1".into());
    options.port = Some(0);
    Ok(Node::open(options).await?)
}

/// Publishes what the catalog lacks.
async fn fill(entries: &Path, directory: &Path, count: usize) -> Outcome {
    let node = open(directory).await?;
    let have = node.catalog().status()?.map_or(0, |status| status.books) as usize;
    if have < count {
        let originals = std::fs::read_to_string(entries)?;
        let originals: Vec<BookEntry> =
            originals.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let start = Instant::now();
        for from in (have..count).step_by(BATCH) {
            let books = (from..count.min(from + BATCH)).map(|number| book(&originals, number));
            node.catalog().publish(books.collect()).await?;
        }
        println!("{}", json!({ "published": count - have, "ms": ms(start.elapsed()) }));
    }
    node.close().await;
    let size = std::fs::metadata(directory.join("p2p.db"))?.len();
    println!("{}", json!({ "databaseBytes": size }));
    Ok(())
}

/// The first ones are the originals; the others mix the words and authors of two.
fn book(originals: &[BookEntry], number: usize) -> Book {
    let (at, round) = (number % originals.len(), number / originals.len());
    let mut entry = originals[at].clone();
    entry.extra.remove("type");
    if round > 0 {
        let other = &originals[(at * 31 + round * 977) % originals.len()];
        let mine: Vec<_> = entry.title.split(' ').collect();
        let theirs: Vec<_> = other.title.split(' ').collect();
        let (left, right) = (mine.len().div_ceil(2), theirs.len() / 2);
        entry.title = [&mine[..left], &theirs[right..]].concat().join(" ");
        entry.author = originals[(at + round * 37) % originals.len()].author.clone();
        entry.id = format!("{}-{round}", entry.id);
        entry.isbn = Some(format!("978{number:010}"));
        let days = (number * 7919) % 28 + 1;
        entry.added_at =
            Some(format!("20{:02}-{:02}-{days:02}T12:00:00Z", round % 26, at % 12 + 1));
    }
    Book { entry, source: None }
}

fn measure(node: &Node) -> Outcome {
    let plain = || SearchOptions { include_own: true, ..SearchOptions::default() };
    let variants = [
        ("", plain()),
        ("by title", SearchOptions { sort: Some(Sort::Title), ..plain() }),
        ("by author", SearchOptions { sort: Some(Sort::Author), ..plain() }),
        ("newest", SearchOptions { sort: Some(Sort::Added), descending: true, ..plain() }),
        ("epub", SearchOptions { formats: vec!["epub".into()], ..plain() }),
        (
            "French by title",
            SearchOptions {
                languages: vec!["fre".into(), "fr".into()],
                sort: Some(Sort::Title),
                ..plain()
            },
        ),
    ];
    let mut all = Vec::new();
    for (kind, queries) in QUERIES {
        let mut times = Vec::new();
        let mut slowest = (Duration::ZERO, String::new());
        for query in *queries {
            for (name, options) in &variants {
                let options = SearchOptions { query: Some((*query).into()), ..options.clone() };
                for _ in 0..ROUNDS {
                    let start = Instant::now();
                    let page = node.catalog().search(&options)?;
                    let took = start.elapsed();
                    times.push(took);
                    if took > slowest.0 {
                        let hits = page.hits.len();
                        slowest = (took, format!("{query} {name}: {hits} of {}", page.total));
                    }
                }
            }
        }
        all.extend_from_slice(&times);
        println!("{}", summary(kind, times, &slowest.1));
    }
    println!("{}", summary("all", all, ""));
    Ok(())
}

fn summary(kind: &str, mut times: Vec<Duration>, slowest: &str) -> serde_json::Value {
    times.sort_unstable();
    let at = |part: f64| times.get(((times.len() - 1) as f64 * part).round() as usize);
    let at = |part| at(part).map(|time| ms(*time));
    json!({ "queries": kind, "p50": at(0.5), "p99": at(0.99), "max": at(1.0), "slowest": slowest })
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}
