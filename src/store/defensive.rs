//! How SQLite is told to distrust the file that it opens.
//!
//! A database's schema is code: triggers and views run when tables are used, and a file brings its own. So no
//! connection trusts a schema, and what nobody has vouched for yet is opened read-only, with triggers and
//! views off and everything bounded (<https://www.sqlite.org/security.html>).

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// The largest row of a file that nobody has vouched for: a block has 15 MiB at most.
const MAX_ROW_BYTES: i32 = 32 << 20;
/// The longest statement, which a file's schema is made of, too.
const MAX_SQL_BYTES: i32 = 64 << 10;

/// What holds for every connection: the schema calls no function that does anything, and nobody writes to it
/// or to the tables behind the search index past SQLite.
pub(super) fn harden(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    Ok(())
}

/// Opens a file that may be anybody's, to be looked at. Nothing in it runs.
pub(super) fn open_untrusted(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    harden(&connection)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    for (limit, most) in [
        (Limit::SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, MAX_SQL_BYTES),
        (Limit::SQLITE_LIMIT_COLUMN, 100),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 100),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 10),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        connection.set_limit(limit, most)?;
    }
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Database;

    #[test]
    fn no_connection_writes_to_the_schema_or_behind_the_search_index() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p2p.db");
        Database::open(&path).unwrap().close();
        let connection = Connection::open(&path).unwrap();
        let shadow = "INSERT INTO catalog_search_data (id, block) VALUES (99, x'00')";
        connection.execute(shadow, []).unwrap();
        harden(&connection).unwrap();
        assert!(connection.execute(shadow, []).is_err());
        connection.pragma_update(None, "writable_schema", true).unwrap();
        assert!(connection.execute("DELETE FROM sqlite_schema", []).is_err());
    }

    #[test]
    fn a_file_that_is_only_looked_at_runs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("foreign");
        let connection = Connection::open(&path).unwrap();
        let sql = "CREATE TABLE t (x); INSERT INTO t VALUES (1); CREATE VIEW v AS SELECT x FROM t;";
        connection.execute_batch(sql).unwrap();
        drop(connection);
        let connection = open_untrusted(&path).unwrap();
        let read = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        assert_eq!(read("SELECT x FROM t").unwrap(), 1);
        assert!(read("SELECT x FROM v").is_err());
        assert!(connection.execute("INSERT INTO t VALUES (2)", []).is_err());
        assert!(connection.execute("ATTACH ':memory:' AS other", []).is_err());
    }
}
