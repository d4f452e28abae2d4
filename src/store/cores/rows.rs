//! The rows of cores: reading and writing them with SQL.

use std::collections::BTreeSet;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use super::pages::{NodePage, PAGE_NODES};
use crate::crypto::Hash;
use crate::hypercore::Node;
use crate::hypercore::bitfield::{PAGE_BITS, Page};
use crate::hypercore::flat_tree;
use crate::hypercore::storage::{Commit, Header, Result, StorageError, StorageErrorKind};

/// Bitfield pages with their numbers.
type Bits = Vec<(u64, Box<Page>)>;

/// How many blocks one statement stores.
const TOGETHER: usize = 32;
/// How far a core's id is shifted. Blocks, pages and tree indexes are below 2^40.
const CORE_SHIFT: u32 = 40;

/// Where row `number` of a core is.
pub(super) fn place(core: i64, number: u64) -> rusqlite::Result<i64> {
    let low = i64::try_from(number).ok().filter(|low| low >> CORE_SHIFT == 0);
    let high = core.checked_mul(1 << CORE_SHIFT);
    match (high, low) {
        (Some(high), Some(low)) => Ok(high | low),
        _ => Err(rusqlite::Error::IntegralValueOutOfRange(0, core)),
    }
}

/// The rows of a core, first and one past the last.
pub(super) fn places(core: i64) -> rusqlite::Result<(i64, i64)> {
    Ok((place(core, 0)?, place(core + 1, 0)?))
}

fn number(place: i64) -> u64 {
    place as u64 & ((1 << CORE_SHIFT) - 1)
}

/// The id of a core.
pub(super) fn id(connection: &Connection, discovery_key: &Hash) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM cores WHERE discovery_key = ?1")?
        .query_row([discovery_key], |row| row.get(0))
        .optional()
}

pub(super) fn header(connection: &Connection, core: i64) -> rusqlite::Result<Header> {
    let sql = "SELECT key, manifest, fork, length, byte_length, signature FROM cores WHERE id = ?1";
    connection.prepare_cached(sql)?.query_row([core], |row| {
        let bytes = |row: &Row<'_>, index| {
            Ok::<_, rusqlite::Error>(row.get::<_, Option<Vec<u8>>>(index)?.map(Bytes::from))
        };
        Ok(Header {
            key: row.get(0)?,
            manifest: bytes(row, 1)?,
            fork: row.get(2)?,
            length: row.get(3)?,
            byte_length: row.get(4)?,
            signature: bytes(row, 5)?,
        })
    })
}

pub(super) fn block(
    connection: &Connection,
    core: i64,
    index: u64,
) -> rusqlite::Result<Option<Bytes>> {
    connection
        .prepare_cached("SELECT bytes FROM core_blocks WHERE place = ?1")?
        .query_row([place(core, index)?], |row| row.get::<_, Vec<u8>>(0))
        .optional()
        .map(|bytes| bytes.map(Bytes::from))
}

pub(super) fn blocks(
    connection: &Connection,
    core: i64,
    start: u64,
    end: u64,
    max_bytes: usize,
) -> rusqlite::Result<Vec<(u64, Bytes)>> {
    let sql =
        "SELECT place, bytes FROM core_blocks WHERE place >= ?1 AND place < ?2 ORDER BY place";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([place(core, start)?, place(core, end)?])?;
    let mut out = Vec::new();
    let mut left = max_bytes;
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(1)?.as_blob()?;
        if bytes.len() > left && !out.is_empty() {
            break;
        }
        left = left.saturating_sub(bytes.len());
        out.push((number(row.get(0)?), Bytes::copy_from_slice(bytes)));
    }
    Ok(out)
}

pub(super) fn page(connection: &Connection, core: i64, number: u64) -> rusqlite::Result<NodePage> {
    let page = connection
        .prepare_cached("SELECT nodes FROM core_nodes WHERE place = ?1")?
        .query_row([place(core, number)?], |row| Ok(NodePage::new(row.get_ref(0)?.as_blob()?)))
        .optional()?;
    Ok(page.unwrap_or_default())
}

pub(super) fn bits(connection: &Connection, core: i64) -> rusqlite::Result<Result<Bits>> {
    let sql = "SELECT place, bits FROM core_bits WHERE place >= ?1 AND place < ?2 ORDER BY place";
    let mut statement = connection.prepare_cached(sql)?;
    let (start, end) = places(core)?;
    let mut rows = statement.query([start, end])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(1)?.as_blob()?;
        let (words, rest) = bytes.as_chunks::<8>();
        let mut page = Box::new([0; size_of::<Page>() / 8]);
        if words.len() != page.len() || !rest.is_empty() {
            let message = "a page of the bitfield has a wrong size";
            return Ok(Err(StorageError::new(StorageErrorKind::Corrupt, message)));
        }
        for (word, bytes) in page.iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
        out.push((number(row.get(0)?), page));
    }
    Ok(Ok(out))
}

/// Stores a commit and returns the core's id and the node pages as they are now.
pub(super) fn commit(
    transaction: &Transaction<'_>,
    discovery_key: &Hash,
    commit: &Commit,
) -> rusqlite::Result<(i64, Vec<(u64, NodePage)>)> {
    let core = match &commit.header {
        Some(header) => put_header(transaction, discovery_key, header)?,
        None => id(transaction, discovery_key)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?,
    };
    if let Some(length) = commit.truncate {
        truncate(transaction, core, length)?;
    }
    let pages = put_nodes(transaction, core, &commit.nodes)?;
    put_blocks(transaction, core, &commit.blocks)?;
    let mut remove = transaction.prepare_cached("DELETE FROM core_blocks WHERE place = ?1")?;
    for index in &commit.removed_blocks {
        remove.execute([place(core, *index)?])?;
    }
    let sql = "INSERT OR REPLACE INTO core_bits (place, bits) VALUES (?1, ?2)";
    let mut put = transaction.prepare_cached(sql)?;
    for (number, page) in &commit.pages {
        let bytes: Vec<u8> = page.iter().flat_map(|word| word.to_le_bytes()).collect();
        put.execute((place(core, *number)?, bytes))?;
    }
    Ok((core, pages))
}

/// Stores blocks, many with a statement: one that runs once is half a search in the table.
fn put_blocks(
    transaction: &Transaction<'_>,
    core: i64,
    blocks: &[(u64, Bytes)],
) -> rusqlite::Result<()> {
    let (many, few) = blocks.as_chunks::<TOGETHER>();
    let put = |sql: &str, blocks: &[(u64, Bytes)]| {
        let mut put = transaction.prepare_cached(sql)?;
        for (at, (index, block)) in blocks.iter().enumerate() {
            put.raw_bind_parameter(2 * at + 1, place(core, *index)?)?;
            put.raw_bind_parameter(2 * at + 2, &block[..])?;
        }
        put.raw_execute().map(drop)
    };
    let one = "INSERT OR REPLACE INTO core_blocks (place, bytes) VALUES (?, ?)";
    if !many.is_empty() {
        let all = format!("{one}{}", ", (?, ?)".repeat(TOGETHER - 1));
        many.iter().try_for_each(|blocks| put(&all, blocks))?;
    }
    few.chunks(1).try_for_each(|block| put(one, block))
}

pub(super) fn put_header(
    transaction: &Transaction<'_>,
    discovery_key: &Hash,
    header: &Header,
) -> rusqlite::Result<i64> {
    let sql = "INSERT INTO cores
        (discovery_key, key, manifest, fork, length, byte_length, signature)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
        ON CONFLICT (discovery_key) DO UPDATE SET
        manifest = ?3, fork = ?4, length = ?5, byte_length = ?6, signature = ?7
        RETURNING id";
    transaction.prepare_cached(sql)?.query_row(
        (
            discovery_key,
            header.key,
            header.manifest.as_deref(),
            header.fork,
            header.length,
            header.byte_length,
            header.signature.as_deref(),
        ),
        |row| row.get(0),
    )
}

fn put_nodes(
    transaction: &Transaction<'_>,
    core: i64,
    nodes: &[Node],
) -> rusqlite::Result<Vec<(u64, NodePage)>> {
    let sql = "INSERT OR REPLACE INTO core_nodes (place, nodes) VALUES (?1, ?2)";
    let mut put = transaction.prepare_cached(sql)?;
    let mut pages = Vec::new();
    for on_page in nodes.chunk_by(|a, b| a.index / PAGE_NODES == b.index / PAGE_NODES) {
        let Some(first) = on_page.first() else { continue };
        let number = first.index / PAGE_NODES;
        let page = page(transaction, core, number)?.with(on_page);
        put.execute((place(core, number)?, page.as_bytes()))?;
        pages.push((number, page));
    }
    Ok(pages)
}

/// Forgets what is about block `length` or a later one.
fn truncate(transaction: &Transaction<'_>, core: i64, length: u64) -> rusqlite::Result<()> {
    let (_, end) = places(core)?;
    let delete = |table: &str, first: u64| {
        let sql = format!("DELETE FROM {table} WHERE place >= ?1 AND place < ?2");
        transaction.prepare_cached(&sql)?.execute([place(core, first)?, end])
    };
    delete("core_blocks", length)?;
    delete("core_nodes", (2 * length).div_ceil(PAGE_NODES))?;
    delete("core_bits", length.div_ceil(PAGE_BITS))?;
    let sql = "UPDATE core_nodes SET nodes = ?2 WHERE place = ?1";
    let mut put = transaction.prepare_cached(sql)?;
    let last = 2 * length / PAGE_NODES;
    let mut straddling: Vec<u64> = flat_tree::straddling(length).collect();
    straddling.sort_unstable();
    let numbers = straddling.iter().map(|index| index / PAGE_NODES).chain([last]);
    for number in numbers.collect::<BTreeSet<_>>() {
        let page = page(transaction, core, number)?.without(&straddling, number, 2 * length);
        put.execute((place(core, number)?, page.as_bytes()))?;
    }
    let sql = "SELECT bits FROM core_bits WHERE place = ?1";
    let boundary = place(core, length / PAGE_BITS)?;
    let bits: Option<Vec<u8>> =
        transaction.prepare_cached(sql)?.query_row([boundary], |row| row.get(0)).optional()?;
    let Some(mut bits) = bits else { return Ok(()) };
    cut_bits(&mut bits, (length % PAGE_BITS) as usize);
    transaction
        .prepare_cached("UPDATE core_bits SET bits = ?2 WHERE place = ?1")?
        .execute((boundary, bits))?;
    Ok(())
}

/// Clears bit `first` and those after it; the lowest of a byte comes first.
fn cut_bits(bits: &mut [u8], first: usize) {
    for (at, byte) in bits.iter_mut().enumerate().skip(first / 8) {
        *byte &= if at == first / 8 { (1 << (first % 8)) - 1 } else { 0 };
    }
}

/// Removes a core and all that is stored of it; its id, if there was one.
pub(super) fn remove(
    transaction: &Transaction<'_>,
    discovery_key: &Hash,
) -> rusqlite::Result<Option<i64>> {
    let Some(core) = id(transaction, discovery_key)? else { return Ok(None) };
    let places = places(core)?;
    for table in ["core_blocks", "core_nodes", "core_bits"] {
        let sql = format!("DELETE FROM {table} WHERE place >= ?1 AND place < ?2");
        transaction.execute(&sql, places)?;
    }
    transaction.execute("DELETE FROM cores WHERE id = ?1", [core])?;
    Ok(Some(core))
}
