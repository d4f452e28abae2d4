//! The tables of the database, how an older file is brought up to date, and what else may be in a file.
//!
//! A trigger, a view or an index that somebody put into the file would act on what is decided here: it could
//! approve a peer again that was removed. So what a file has is compared with what the migrations make,
//! before anything of it can run. A person's own tables, which nothing here reads, may be there.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::StoreError;

/// Each entry takes the schema one version further. Entries that were released are never changed.
const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
    include_str!("schema_5.sql"),
    include_str!("schema_6.sql"),
];

/// Runs the migrations that the file has not seen, each in a transaction.
///
/// Fails with [`StoreError::ForeignSchema`] before anything of the file runs that is not ours.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    own_tables(connection)?;
    let found = check(connection)?;
    for (index, sql) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// The version of a file, which this library must know.
pub(super) fn check(connection: &Connection) -> Result<i64, StoreError> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = MIGRATIONS.len() as i64;
    match found {
        found if found > known => Err(StoreError::TooNew { found, known }),
        found if found < 0 => Err(foreign("a version that was never given out".to_owned())),
        found => Ok(found),
    }
}

/// The names of a person's own tables in the file. Fails with [`StoreError::ForeignSchema`] when anything
/// else is not as the migrations make it.
pub(super) fn own_tables(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let version = check(connection)?;
    let mut missing = made_by(version)?;
    let ours: Vec<String> = missing.keys().cloned().collect();
    let mut extra = Vec::new();
    for (name, object) in objects(connection)? {
        match missing.remove(&name) {
            Some(expected) if expected == object => {}
            Some(_) => return Err(foreign(format!("another {} \"{name}\"", object.kind))),
            None if object.is_inert() && !ours.contains(&object.table) => {
                if object.kind == "table" {
                    extra.push(name);
                }
            }
            None => return Err(foreign(format!("the {} \"{name}\"", object.kind))),
        }
    }
    match missing.pop_first() {
        Some((name, object)) => Err(foreign(format!("no {} \"{name}\"", object.kind))),
        None => Ok(extra),
    }
}

/// As [`own_tables`], where nobody's own tables belong.
pub(super) fn check_exact(connection: &Connection) -> Result<(), StoreError> {
    match own_tables(connection)?.first() {
        Some(name) => Err(foreign(format!("the table \"{name}\""))),
        None => Ok(()),
    }
}

fn foreign(what: String) -> StoreError {
    StoreError::ForeignSchema { what }
}

/// A row of `sqlite_schema`.
#[derive(Debug, PartialEq, Eq)]
struct Object {
    kind: String,
    table: String,
    /// [`without_layout`]. Indexes that SQLite makes of itself have none.
    sql: Option<String>,
}

impl Object {
    /// Whether it does nothing unless it is asked, as long as it is not about a table of ours.
    fn is_inert(&self) -> bool {
        let is_virtual = || {
            let sql = self.sql.as_deref().unwrap_or_default();
            sql.get(..14).is_none_or(|start| start.eq_ignore_ascii_case("CREATE VIRTUAL"))
        };
        match self.kind.as_str() {
            "table" => !is_virtual(),
            "index" => true,
            _ => false,
        }
    }
}

fn objects(connection: &Connection) -> Result<BTreeMap<String, Object>, StoreError> {
    let sql = "SELECT name, type, tbl_name, sql FROM sqlite_schema";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| {
        let sql = row.get::<_, Option<String>>(3)?.map(|sql| without_layout(&sql));
        Ok((row.get(0)?, Object { kind: row.get(1)?, table: row.get(2)?, sql }))
    })?;
    let mut objects = BTreeMap::new();
    for row in rows {
        let (name, object): (String, Object) = row?;
        if objects.insert(name.clone(), object).is_some() {
            return Err(foreign(format!("\"{name}\" twice")));
        }
    }
    Ok(objects)
}

/// A statement without comments, and with no more space than its words need: SQLite keeps the text as it was
/// written, and tools that copy a database write it in their own way.
fn without_layout(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len());
    let is_word = |c: char| !matches!(c, '(' | ')' | ',' | '=');
    let mut is_spaced = false;
    let mut chars = sql.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() {
            is_spaced = true;
            continue;
        }
        if c == '-' && chars.peek() == Some(&'-') {
            chars.by_ref().find(|c| *c == '\n');
            is_spaced = true;
            continue;
        }
        if std::mem::take(&mut is_spaced)
            && is_word(c)
            && out.chars().next_back().is_some_and(is_word)
        {
            out.push(' ');
        }
        out.push(c);
        // What is quoted stays as it is.
        let end = match c {
            '\'' | '"' | '`' => c,
            '[' => ']',
            _ => continue,
        };
        for c in chars.by_ref() {
            out.push(c);
            if c == end {
                break;
            }
        }
    }
    out
}

/// What the migrations up to a version make.
fn made_by(version: i64) -> Result<BTreeMap<String, Object>, StoreError> {
    let connection = Connection::open_in_memory()?;
    connection.execute_batch("BEGIN")?;
    for sql in MIGRATIONS.iter().take(usize::try_from(version).unwrap_or(0)) {
        connection.execute_batch(sql)?;
    }
    objects(&connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in a new database after `sql` was run on it.
    fn found(version: usize, sql: &str) -> Result<Vec<String>, StoreError> {
        let connection = Connection::open_in_memory().unwrap();
        for migration in &MIGRATIONS[..version] {
            connection.execute_batch(migration).unwrap();
        }
        connection.pragma_update(None, "user_version", version as i64).unwrap();
        connection.execute_batch(sql).unwrap();
        own_tables(&connection)
    }

    #[test]
    fn each_version_is_as_its_migrations_make_it_and_no_other() {
        for version in 0..=MIGRATIONS.len() {
            assert!(found(version, "").unwrap().is_empty());
            let other = if version > 0 { version - 1 } else { 1 };
            assert!(found(version, &format!("PRAGMA user_version = {other}")).is_err());
        }
        let newer = found(1, "PRAGMA user_version = 1000").unwrap_err();
        assert!(matches!(newer, StoreError::TooNew { .. }));
        assert!(found(1, "PRAGMA user_version = -1").is_err());
    }

    #[test]
    fn tables_of_a_person_may_be_there_and_nothing_that_acts() {
        let mine = "CREATE TABLE mine (x UNIQUE); CREATE INDEX mine_by_x ON mine (x);";
        assert_eq!(found(5, mine).unwrap(), ["mine"]);
        for sql in [
            "CREATE TABLE mine (x); CREATE TRIGGER t AFTER INSERT ON mine BEGIN SELECT 1; END",
            "CREATE TRIGGER t AFTER DELETE ON peers BEGIN SELECT 1; END",
            "CREATE VIEW mine AS SELECT * FROM peers",
            "CREATE VIRTUAL TABLE mine USING fts5 (x)",
            "CREATE INDEX mine ON peers (nickname)",
            "DROP INDEX transfers_by_time",
            "DROP TABLE knocks",
            "ALTER TABLE knocks ADD COLUMN more TEXT",
            "DROP TRIGGER catalog_follows_forks;
             CREATE TRIGGER catalog_follows_forks AFTER UPDATE OF fork ON cores BEGIN SELECT 1; END",
            "DROP TABLE knocks; CREATE VIEW knocks AS SELECT 1",
        ] {
            let error = found(5, sql).unwrap_err();
            assert!(matches!(error, StoreError::ForeignSchema { .. }), "{sql}");
        }
    }

    #[test]
    fn how_a_statement_is_written_makes_no_difference_and_what_it_says_does() {
        let a = without_layout(
            "CREATE TABLE a (\n  b TEXT, -- it's one\n  c   TEXT DEFAULT 'x  --y'\n)",
        );
        assert_eq!(a, "CREATE TABLE a(b TEXT,c TEXT DEFAULT 'x  --y')");
        assert_eq!(a, without_layout("CREATE TABLE a(b TEXT ,c TEXT DEFAULT 'x  --y' )"));
        assert_ne!(a, without_layout("CREATE TABLE a (bTEXT, c TEXT DEFAULT 'x  --y')"));
        assert_ne!(a, without_layout("CREATE TABLE a (b TEXT, c TEXT DEFAULT 'x --y')"));
        assert_eq!(without_layout("'never ends -- "), "'never ends -- ");
    }
}
