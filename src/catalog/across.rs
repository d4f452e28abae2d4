//! Pages of the books of all peers together.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::CatalogError;
use super::entry::{self, BookEntry};
use super::find::{Counts, Sort};
use super::have::{Have, have};
use super::list::Wanted;
use super::view::{self, Feed};
use crate::crypto::PublicKey;
use crate::error::Result;
use crate::identity::parse_key;
use crate::store::StoreError;

/// How many formats or languages the counts name; the rarer ones are left out.
const MAX_FACETS: usize = 50;

/// Which books to find among those of all peers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SearchOptions {
    /// Words that begin words of the title, author, series or ISBN; case and accents do not matter. An
    /// ISBN of 10 digits finds the same one of 13, and the other way round.
    pub query: Option<String>,
    /// Only the catalogs of these servers (keys, or invite links); unless told, of all peers that are not
    /// blocked.
    pub peers: Option<Vec<String>>,
    /// Only books of one of these formats; all when empty.
    pub formats: Vec<String>,
    /// Only books in one of these languages, as their servers write them; all when empty.
    pub languages: Vec<String>,
    /// The order; by relevance unless told, by title when nothing is typed.
    pub sort: Option<Sort>,
    /// The other way round.
    pub descending: bool,
    /// The `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// How many books, 1 to 1,000; 50 unless told.
    pub limit: Option<u32>,
    /// Also this node's own books.
    pub include_own: bool,
}

impl SearchOptions {
    /// The keys in `peers`.
    pub(super) fn peers(&self) -> Result<Option<Vec<PublicKey>>> {
        let Some(peers) = &self.peers else { return Ok(None) };
        let keys = peers.iter().map(|key| Ok(parse_key(key)?.key));
        Ok(Some(keys.collect::<Result<_>>()?))
    }
}

/// A book that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CatalogHit {
    /// The server that offers it, z32.
    pub peer: String,
    /// What the server is called here, or else calls itself.
    pub nickname: Option<String>,
    /// Whether it is one of this node's own books.
    pub is_own: bool,
    /// The book, with its texts made safe to show.
    pub book: BookEntry,
    /// How it is here already; `None` when it is not, as far as is known. `None` for own books.
    pub have: Option<Have>,
}

/// How many of the books found are of one kind: the 50 most frequent ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facets {
    /// By format, in lower case.
    pub formats: Counts,
    /// By language, in lower case.
    pub languages: Counts,
    /// By server, z32.
    pub peers: Counts,
}

/// Some of the books that were found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SearchPage {
    /// The books, in order.
    pub hits: Vec<CatalogHit>,
    /// Where the next page begins; `None` at the end. A page may have fewer books than the limit, or
    /// none, and yet a cursor: what it looked for is rare, and it stopped looking for a moment.
    pub next_cursor: Option<String>,
    /// How many books are found; at least so many when it is not exact.
    pub total: u64,
    /// Whether `total` is exact.
    pub is_total_exact: bool,
    /// How many are of one kind; `None` where there are too many to count in time.
    pub facets: Option<Facets>,
}

/// Finds a page of books in the catalogs of `peers`, or of everybody but this node, `me`, and those whom it
/// has blocked.
pub(super) fn search(
    connection: &Connection,
    me: &PublicKey,
    peers: Option<&[PublicKey]>,
    options: &SearchOptions,
) -> std::result::Result<SearchPage, CatalogError> {
    let known = view::feeds(connection)?;
    let blocked = match peers {
        Some(_) => HashSet::new(),
        None => blocked(connection)?,
    };
    let is_wanted = |feed: &&Feed| match peers {
        _ if feed.server == *me => options.include_own,
        Some(peers) => peers.contains(&feed.server),
        None => !blocked.contains(&feed.server),
    };
    let feeds: Vec<Feed> = known.iter().filter(is_wanted).cloned().collect();
    let wanted = Wanted {
        typed: options.query.as_deref(),
        formats: &options.formats,
        languages: &options.languages,
        sort: options.sort.unwrap_or(Sort::Relevance),
        descending: options.descending,
        cursor: options.cursor.as_deref(),
        limit: options.limit,
    };
    let (found, next_cursor) = wanted.find(connection, &feeds)?;
    let own = known.iter().find(|feed| feed.server == *me);
    let servers: HashMap<i64, PublicKey> =
        feeds.iter().map(|feed| (feed.number, feed.server)).collect();
    let mut nicknames = HashMap::new();
    let mut hits = Vec::with_capacity(found.rows.len());
    for row in found.rows {
        let Some(server) = servers.get(&(row >> view::SEQUENCE_BITS)) else { continue };
        let json = view::entry_at(connection, row)?;
        let Some(book) = json.and_then(|json| entry::decode_book(&json).ok()) else { continue };
        let is_own = server == me;
        if !nicknames.contains_key(server) {
            nicknames.insert(*server, nickname(connection, server)?);
        }
        hits.push(CatalogHit {
            peer: server.to_z32(),
            nickname: nicknames.get(server).cloned().flatten(),
            is_own,
            have: if is_own { None } else { have(connection, own, server, &book)? },
            book: entry::shown(book),
        });
    }
    let facets = found.facets.map(|(formats, languages, peers)| Facets {
        formats: most(formats),
        languages: most(languages),
        peers: peers
            .into_iter()
            .filter_map(|(number, count)| Some((servers.get(&number)?.to_z32(), count)))
            .collect(),
    });
    let (total, is_total_exact) = (found.total, found.is_exact);
    Ok(SearchPage { hits, next_cursor, total, is_total_exact, facets })
}

/// The servers whose books nobody here wants to see unless they are asked for by name.
fn blocked(connection: &Connection) -> std::result::Result<HashSet<PublicKey>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT public_key FROM peers WHERE status = 'blocked'")?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    let mut keys = HashSet::new();
    for key in rows {
        keys.extend(PublicKey::from_z32(&key?));
    }
    Ok(keys)
}

fn most(counts: Counts) -> Counts {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.truncate(MAX_FACETS);
    counts.into_iter().collect()
}

fn nickname(
    connection: &Connection,
    server: &PublicKey,
) -> std::result::Result<Option<String>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT coalesce(nickname, name) FROM peers WHERE public_key = ?1")?;
    Ok(statement.query_row([server.to_z32()], |row| row.get(0)).optional()?.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Database;

    const ME: PublicKey = PublicKey::from_bytes([1; 32]);
    const ADA: PublicKey = PublicKey::from_bytes([2; 32]);
    const BOB: PublicKey = PublicKey::from_bytes([3; 32]);

    fn book(id: &str, title: &str, more: &str) -> String {
        format!(r#"{{"type":"book-added","id":"{id}","title":"{title}"{more}}}"#)
    }

    async fn publish(db: &Database, server: PublicKey, entries: &[String]) {
        view::fixture::replay(db, server, *server.as_bytes(), entries).await;
    }

    fn page(db: &Database, options: &SearchOptions) -> SearchPage {
        db.read(|c| search(c, &ME, None, options)).unwrap()
    }

    fn query(words: &str) -> SearchOptions {
        SearchOptions { query: Some(words.into()), ..SearchOptions::default() }
    }

    fn ids(page: &SearchPage) -> Vec<&str> {
        page.hits.iter().map(|hit| hit.book.id.as_str()).collect()
    }

    /// Every page one after the other; `meanwhile` runs after the first.
    async fn all<F: Future<Output = ()>>(
        db: &Database,
        options: &SearchOptions,
        meanwhile: F,
    ) -> Vec<String> {
        let mut meanwhile = Some(meanwhile);
        let mut options = options.clone();
        let mut seen = Vec::new();
        loop {
            let page = page(db, &options);
            seen.extend(ids(&page).into_iter().map(str::to_owned));
            if let Some(work) = meanwhile.take() {
                work.await;
            }
            options.cursor = page.next_cursor;
            if options.cursor.is_none() {
                return seen;
            }
        }
    }

    fn open() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("p2p.db")).unwrap();
        (dir, db)
    }

    #[tokio::test]
    async fn all_peers_are_searched_and_counted_and_the_own_books_on_request() {
        let (_dir, db) = open();
        publish(&db, ME, &[book("m", "Émile", r#","format":"epub""#)]).await;
        publish(&db, ADA, &[book("a", "EMILE", r#","format":"PDF","language":"fr""#)]).await;
        publish(&db, BOB, &[book("b", "Emile or on Education", r#","format":"epub""#)]).await;
        let found = page(&db, &query("emile"));
        assert_eq!(ids(&found), ["a", "b"]);
        assert_eq!((found.total, found.is_total_exact), (2, true));
        let facets = found.facets.unwrap();
        assert_eq!(facets.formats, Counts::from([("epub".into(), 1), ("pdf".into(), 1)]));
        assert_eq!(facets.languages, Counts::from([("fr".into(), 1)]));
        assert_eq!(facets.peers, Counts::from([(ADA.to_z32(), 1), (BOB.to_z32(), 1)]));
        let own = page(&db, &SearchOptions { include_own: true, ..query("emile") });
        assert_eq!((ids(&own), own.hits[0].is_own), (vec!["m", "a", "b"], true));
        let of =
            |peers: &[PublicKey]| db.read(|c| search(c, &ME, Some(peers), &query(""))).unwrap();
        assert_eq!(ids(&of(&[BOB])), ["b"]);
        assert_eq!(of(&[]).total, 0);
        let french = SearchOptions { languages: vec!["FR".into()], ..query("") };
        assert_eq!(ids(&page(&db, &french)), ["a"]);
        let epub = SearchOptions { formats: vec!["epub".into()], ..query("emile") };
        assert_eq!(ids(&page(&db, &epub)), ["b"]);
    }

    #[tokio::test]
    async fn what_a_blocked_peer_offers_is_found_only_when_it_is_asked_for() {
        let (_dir, db) = open();
        publish(&db, ADA, &[book("a", "Emile", r#","format":"pdf""#)]).await;
        publish(&db, BOB, &[book("b", "Emile", r#","format":"epub""#)]).await;
        for (status, found) in [("blocked", vec!["a"]), ("approved", vec!["a", "b"])] {
            let bob = BOB.to_z32();
            db.write(move |t| {
                t.execute(
                    "INSERT OR REPLACE INTO peers (public_key, status, added_at) VALUES (?1, ?2, 0)",
                    [bob.as_str(), status],
                )?;
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
            let all = page(&db, &query("emile"));
            assert_eq!((ids(&all), all.total), (found.clone(), found.len() as u64), "{status}");
            assert_eq!(all.facets.unwrap().formats.len(), found.len(), "{status}");
            let named = db.read(|c| search(c, &ME, Some(&[BOB]), &query("emile"))).unwrap();
            assert_eq!(ids(&named), ["b"], "{status}");
        }
    }

    #[tokio::test]
    async fn titles_that_begin_with_what_was_typed_come_first() {
        let (_dir, db) = open();
        let entries = [
            book("1", "Annotated Dracula", ""),
            book("2", "Dracula", ""),
            book("3", "Blood", r#","author":"Dracula""#),
        ];
        publish(&db, ADA, &entries).await;
        assert_eq!(ids(&page(&db, &query("dracula"))), ["2", "1", "3"]);
        let descending = SearchOptions { descending: true, ..query("dracula") };
        assert_eq!(ids(&page(&db, &descending)), ["3", "1", "2"]);
        let by_author = SearchOptions { sort: Some(Sort::Author), ..query("dracula") };
        assert_eq!(ids(&page(&db, &by_author)), ["3", "1", "2"]);
    }

    #[tokio::test]
    async fn what_is_here_already_is_known_by_its_isbn_its_hash_or_its_transfer() {
        let (_dir, db) = open();
        let own = [
            book("mine", "One", r#","isbn":"0-14-143951-3""#),
            book("same", "Two", r#","hash":"00112233445566778899AABB""#),
        ];
        publish(&db, ME, &own).await;
        let theirs = [
            book("a", "A", r#","isbn":"9780141439518""#),
            book("b", "B", r#","hash":"00112233445566778899aabb""#),
            book("c", "C", ""),
            book("d", "D", r#","isbn":"9780141439525""#),
        ];
        publish(&db, ADA, &theirs).await;
        db.write(|t| {
            t.execute(
                "INSERT INTO transfers (id, direction, peer, request_id, book_id, title, state, \
                 bytes, approved, told, created_at, updated_at) \
                 VALUES ('t', 'incoming', ?1, 'r', 'c', 'C', 'completed', 1, 1, 1, 1, 1)",
                [ADA.as_bytes()],
            )?;
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
        let have: Vec<_> = page(&db, &query("")).hits.into_iter().map(|hit| hit.have).collect();
        let book_id = |id: &str| id.to_owned();
        let wanted = [
            Some(Have::Isbn { book_id: book_id("mine") }),
            Some(Have::Hash { book_id: book_id("same") }),
            Some(Have::Transfer { transfer_id: "t".into() }),
            None,
        ];
        assert_eq!(have, wanted);
    }

    #[tokio::test]
    async fn pages_in_every_order_show_each_book_once_while_others_come() {
        let (_dir, db) = open();
        for server in [ADA, BOB] {
            let entries: Vec<_> = (0..60)
                .map(|n| {
                    let more = format!(r#","author":"A{}","addedAt":"20{:02}""#, n % 7, n % 11);
                    book(&format!("{}{n}", &server.to_z32()[..1]), &format!("T{}", n % 9), &more)
                })
                .collect();
            publish(&db, server, &entries).await;
        }
        let mut round = 0;
        for sort in [Sort::Relevance, Sort::Title, Sort::Author, Sort::Added, Sort::Published] {
            for (descending, words) in [(false, ""), (true, ""), (false, "t"), (true, "t3")] {
                round += 1;
                let sort = Some(sort);
                let options = SearchOptions { sort, descending, limit: Some(7), ..query(words) };
                let whole = SearchOptions { cursor: None, limit: Some(1000), ..options.clone() };
                let before = page(&db, &whole);
                let seen = all(&db, &options, async {
                    let entry = book(&format!("new{round}"), "T3", r#","author":"A3""#);
                    publish(&db, ADA, &[entry]).await;
                })
                .await;
                let old: Vec<_> = seen.iter().filter(|id| **id != format!("new{round}")).collect();
                assert_eq!(old, ids(&before), "{options:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_cursor_of_another_order_is_refused() {
        let (_dir, db) = open();
        publish(&db, ADA, &[book("a", "A", ""), book("b", "B", "")]).await;
        let options = SearchOptions { limit: Some(1), ..query("") };
        let cursor = page(&db, &options).next_cursor.unwrap();
        for (sort, cursor) in [
            (Sort::Author, cursor.as_str()),
            (Sort::Title, "t.1"),
            (Sort::Title, "t.1.6"),
            (Sort::Title, "t.1.ff"),
            (Sort::Title, "t.é.00"),
            (Sort::Title, ""),
        ] {
            let (sort, cursor) = (Some(sort), Some(cursor.to_owned()));
            let options = SearchOptions { sort, cursor, ..query("") };
            let refused = db.read(|c| search(c, &ME, None, &options));
            assert!(matches!(refused, Err(CatalogError::InvalidCursor)));
        }
    }
}
