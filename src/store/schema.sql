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

-- transfer: books on their way, in either direction.
CREATE TABLE transfers (
  id          TEXT PRIMARY KEY,
  direction   TEXT NOT NULL,
  peer        BLOB NOT NULL,
  request_id  TEXT NOT NULL, -- the id on the wire
  book_id     TEXT NOT NULL,
  title       TEXT NOT NULL,
  author      TEXT,
  format      TEXT,
  size_bytes  INTEGER, -- as the catalog claims
  state       TEXT NOT NULL,
  reason      TEXT,
  error       TEXT, -- an ErrorCode
  core_key    BLOB,
  tree_hash   BLOB,
  length      INTEGER,
  byte_length INTEGER,
  bytes       INTEGER NOT NULL,
  save_to     TEXT,
  path        TEXT,
  approved    INTEGER NOT NULL,
  told        INTEGER NOT NULL, -- the peer knows how it ended
  created_at  INTEGER NOT NULL,
  updated_at  INTEGER NOT NULL,
  UNIQUE (direction, peer, request_id)
) STRICT;

CREATE UNIQUE INDEX transfers_under_way ON transfers (peer, book_id)
  WHERE direction = 'incoming' AND state NOT IN ('completed', 'denied', 'cancelled', 'failed');
CREATE INDEX transfers_by_time ON transfers (created_at);

-- Which transfer's partial file the stored data of a book's core are about.
CREATE TABLE transfer_parts (
  core_key BLOB PRIMARY KEY,
  transfer TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Files that were hashed to be sent: hashed again only when they changed.
CREATE TABLE transfer_files (
  path        TEXT PRIMARY KEY,
  size        INTEGER NOT NULL,
  modified_ns INTEGER NOT NULL,
  core_key    BLOB NOT NULL,
  tree_hash   BLOB NOT NULL,
  length      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The servers that this one admits or blocks. public_key is z32.
CREATE TABLE peers (
  public_key   TEXT PRIMARY KEY,
  nickname     TEXT, -- given here
  name         TEXT, -- what the peer calls itself
  status       TEXT NOT NULL CHECK (status IN ('approved', 'blocked')),
  added_at     INTEGER NOT NULL,
  last_seen_at INTEGER,
  is_online    INTEGER NOT NULL DEFAULT 0,
  policy       TEXT,
  feed_key     BLOB
) STRICT, WITHOUT ROWID;

-- Keys that tried to connect and are neither admitted nor blocked. public_key is z32.
CREATE TABLE knocks (
  public_key TEXT PRIMARY KEY,
  first_at   INTEGER NOT NULL,
  last_at    INTEGER NOT NULL,
  count      INTEGER NOT NULL,
  address    TEXT
) STRICT, WITHOUT ROWID;

-- cores: logs, their own and peers'.
CREATE TABLE cores (
  id            INTEGER PRIMARY KEY,
  discovery_key BLOB NOT NULL UNIQUE,
  key           BLOB NOT NULL,
  manifest      BLOB, -- as on the wire; NULL until it is known
  fork          INTEGER NOT NULL,
  length        INTEGER NOT NULL, -- blocks
  byte_length   INTEGER NOT NULL,
  signature     BLOB -- as on the wire; NULL for static cores
) STRICT;

-- place = core << 40 | block. Keyed by one integer, rows lie in order and are found fastest.
CREATE TABLE core_blocks (
  place INTEGER PRIMARY KEY,
  bytes BLOB NOT NULL
) STRICT;

-- place = core << 40 | tree index / 96; 40 bytes a node: size (u64, little-endian) and hash, or zeros.
CREATE TABLE core_nodes (
  place INTEGER PRIMARY KEY,
  nodes BLOB NOT NULL
) STRICT;

-- place = core << 40 | block / 8192; a bit a block, in little-endian words of 64.
CREATE TABLE core_bits (
  place INTEGER PRIMARY KEY,
  bits  BLOB NOT NULL
) STRICT;
