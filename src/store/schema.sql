-- Version 1. Keys are BLOBs of 32 bytes unless a column says z32; times are Unix milliseconds.

-- Small facts about this node.
CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- catalog: the feeds that are replayed, this node's own among them.
CREATE TABLE catalog_feeds (
  number        INTEGER PRIMARY KEY AUTOINCREMENT,
  server        BLOB NOT NULL UNIQUE,
  feed_key      BLOB NOT NULL,
  position      INTEGER NOT NULL DEFAULT 0, -- entries replayed
  next_sequence INTEGER NOT NULL DEFAULT 0,
  books         INTEGER NOT NULL DEFAULT 0,
  skipped       INTEGER NOT NULL DEFAULT 0,
  updated_at    INTEGER
) STRICT;

-- The books on offer now. row = feed << 32 | sequence.
CREATE TABLE catalog_books (
  row     INTEGER PRIMARY KEY,
  feed    INTEGER NOT NULL,
  book_id TEXT NOT NULL,
  entry   TEXT NOT NULL, -- the feed entry's JSON
  UNIQUE (feed, book_id)
) STRICT;

-- Same row ids as catalog_books.
CREATE VIRTUAL TABLE catalog_search USING fts5 (
  words, content = '', contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 2'
);

-- Where the bytes of this node's own books are. Never on the wire.
CREATE TABLE catalog_sources (
  book_id TEXT PRIMARY KEY,
  path    TEXT -- NULL: the program provides the book when it is asked for
) STRICT, WITHOUT ROWID;
