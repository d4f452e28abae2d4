//! The tables `peers`, `peer_addresses` and `knocks`.

use std::collections::HashMap;
use std::net::SocketAddr;

use rusqlite::{Connection, Row, Transaction, params};

use super::knocks::Entry;
use super::record::{PeerStatus, Policy};
use crate::crypto::PublicKey;
use crate::store::{StoreError, readable};

/// A row of `peers`, but for presence, which is not known before a connection is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) nickname: Option<String>,
    pub(super) name: Option<String>,
    /// Never [`PeerStatus::Pending`].
    pub(super) status: PeerStatus,
    pub(super) added_at: u64,
    pub(super) last_seen_at: Option<u64>,
    pub(super) policy: Option<Policy>,
    pub(super) feed_key: Option<[u8; 32]>,
    pub(super) address: Option<String>,
}

/// After a crash, the table still says who was online then.
pub(super) fn all_offline(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    transaction.execute("UPDATE peers SET is_online = 0 WHERE is_online <> 0", [])?;
    Ok(())
}

/// Writes a peer, new or changed; presence stays.
pub(super) fn put(
    transaction: &Transaction<'_>,
    key: &PublicKey,
    peer: &Stored,
) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "INSERT INTO peers (public_key, nickname, name, status, added_at, last_seen_at, policy, feed_key, address)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (public_key) DO UPDATE SET nickname = excluded.nickname, name = excluded.name,
             status = excluded.status, policy = excluded.policy, feed_key = excluded.feed_key,
             address = excluded.address",
        )?
        .execute(params![
            key.to_z32(),
            peer.nickname,
            peer.name,
            peer.status.as_str(),
            millis(peer.added_at),
            peer.last_seen_at.map(millis),
            peer.policy.map(Policy::as_str),
            peer.feed_key,
            peer.address,
        ])?;
    Ok(())
}

/// Forgets a peer.
pub(super) fn delete(transaction: &Transaction<'_>, key: &PublicKey) -> Result<(), StoreError> {
    transaction.execute("DELETE FROM peers WHERE public_key = ?1", [key.to_z32()])?;
    put_addresses(transaction, key, &[])
}

/// Writes where a peer was reached, in place of what was there.
pub(super) fn put_addresses(
    transaction: &Transaction<'_>,
    key: &PublicKey,
    addresses: &[(SocketAddr, u64)],
) -> Result<(), StoreError> {
    let key = key.to_z32();
    transaction
        .prepare_cached("DELETE FROM peer_addresses WHERE public_key = ?1")?
        .execute([&key])?;
    for (address, at) in addresses {
        transaction
            .prepare_cached(
                "INSERT INTO peer_addresses (public_key, address, reached_at) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![key, address.to_string(), millis(*at)])?;
    }
    Ok(())
}

/// Where each peer was reached, the latest last. What cannot be read is skipped.
#[allow(clippy::type_complexity)] // One use.
pub(super) fn addresses(
    connection: &Connection,
) -> Result<HashMap<PublicKey, Vec<(SocketAddr, u64)>>, StoreError> {
    let sql = "SELECT public_key, address, reached_at FROM peer_addresses ORDER BY reached_at";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut addresses: HashMap<_, Vec<_>> = HashMap::new();
    while let Some(row) = rows.next()? {
        let read = || Ok::<(String, String, i64), _>((row.get(0)?, row.get(1)?, row.get(2)?));
        let Some((key, address, at)) = readable("peer_addresses", read())? else { continue };
        let Some(key) = PublicKey::from_z32(&key) else { continue };
        if let Ok(address) = address.parse() {
            addresses.entry(key).or_default().push((address, unsigned(at)));
        }
    }
    Ok(addresses)
}

/// Writes whether a peer is connected, when it last was, and what it says of itself.
pub(super) fn put_presence(
    transaction: &Transaction<'_>,
    key: &PublicKey,
    is_online: bool,
    stored: &Stored,
) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "UPDATE peers SET is_online = ?2, last_seen_at = ?3, name = ?4, feed_key = ?5 \
             WHERE public_key = ?1",
        )?
        .execute(params![
            key.to_z32(),
            is_online,
            stored.last_seen_at.map(millis),
            stored.name,
            stored.feed_key,
        ])?;
    Ok(())
}

/// Writes a knock, or deletes it.
pub(super) fn put_knock(
    transaction: &Transaction<'_>,
    key: &PublicKey,
    entry: Option<&Entry>,
) -> Result<(), StoreError> {
    let Some(entry) = entry else {
        transaction
            .prepare_cached("DELETE FROM knocks WHERE public_key = ?1")?
            .execute([key.to_z32()])?;
        return Ok(());
    };
    transaction
        .prepare_cached(
            "INSERT INTO knocks (public_key, first_at, last_at, count, address)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (public_key) DO UPDATE SET last_at = excluded.last_at,
             count = excluded.count, address = excluded.address",
        )?
        .execute(params![
            key.to_z32(),
            millis(entry.first_at),
            millis(entry.last_at),
            millis(entry.count),
            entry.address.map(|address| address.to_string()),
        ])?;
    Ok(())
}

/// All peers. A row that cannot be read is skipped with a warning.
pub(super) fn peers(connection: &Connection) -> Result<Vec<(PublicKey, Stored)>, StoreError> {
    let sql = "SELECT public_key, nickname, name, status, added_at, last_seen_at, policy, feed_key, \
               address \
               FROM peers";
    read_all(connection, sql, read_peer)
}

/// All knocks, the latest first. A row that cannot be read is skipped with a warning.
pub(super) fn knocks(connection: &Connection) -> Result<Vec<(PublicKey, Entry)>, StoreError> {
    let sql =
        "SELECT public_key, first_at, last_at, count, address FROM knocks ORDER BY last_at DESC";
    read_all(connection, sql, read_knock)
}

fn read_all<T>(
    connection: &Connection,
    sql: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<Option<T>>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        match readable("peers or knocks", read(row))? {
            Some(Some(value)) => out.push(value),
            Some(None) => {
                tracing::warn!("a row of the peers or knocks table is not valid; it is ignored")
            }
            None => {}
        }
    }
    Ok(out)
}

fn read_peer(row: &Row<'_>) -> rusqlite::Result<Option<(PublicKey, Stored)>> {
    let key: String = row.get(0)?;
    let status: String = row.get(3)?;
    let policy: Option<String> = row.get(6)?;
    let feed_key: Option<Vec<u8>> = row.get(7)?;
    let Some(key) = PublicKey::from_z32(&key) else { return Ok(None) };
    let status = match status.as_str() {
        "approved" => PeerStatus::Approved,
        _ => PeerStatus::Blocked,
    };
    Ok(Some((
        key,
        Stored {
            nickname: row.get(1)?,
            name: row.get(2)?,
            status,
            added_at: unsigned(row.get(4)?),
            last_seen_at: row.get::<_, Option<i64>>(5)?.map(unsigned),
            // A word that nobody knows gives nothing away.
            policy: policy.map(|policy| policy.parse().unwrap_or(Policy::MetadataOnly)),
            feed_key: feed_key.and_then(|bytes| bytes.try_into().ok()),
            address: row.get(8)?,
        },
    )))
}

fn read_knock(row: &Row<'_>) -> rusqlite::Result<Option<(PublicKey, Entry)>> {
    let key: String = row.get(0)?;
    let address: Option<String> = row.get(4)?;
    let address = address.and_then(|address| address.parse().ok());
    let (first_at, last_at) = (unsigned(row.get(1)?), unsigned(row.get(2)?));
    let count = unsigned(row.get(3)?);
    Ok(PublicKey::from_z32(&key).map(|key| (key, Entry::new(first_at, last_at, count, address))))
}

/// SQLite's integers are signed.
fn millis(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
