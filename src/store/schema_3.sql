-- Version 3: catalogs are searched, filtered and sorted, all of them at once.

-- The view is made anew from the feeds, which are kept.
DROP TABLE catalog_search;
DROP TABLE catalog_books;
UPDATE catalog_feeds SET position = 0, next_sequence = 0, books = 0, skipped = 0;

-- The books on offer now: what they are sorted and filtered by. row = feed << 32 | sequence.
CREATE TABLE catalog_books (
  row      INTEGER PRIMARY KEY,
  feed     INTEGER NOT NULL,
  book_id  TEXT NOT NULL,
  title    TEXT NOT NULL, -- folded and cut, as the next ones are
  author   TEXT NOT NULL, -- then the title
  added    TEXT NOT NULL,
  format   TEXT NOT NULL,
  language TEXT NOT NULL,
  UNIQUE (feed, book_id)
) STRICT;
CREATE INDEX catalog_by_title ON catalog_books (feed, title, row, format, language);
CREATE INDEX catalog_by_author ON catalog_books (feed, author, row, format, language);
CREATE INDEX catalog_by_added ON catalog_books (feed, added, row, format, language);

-- Same row ids. Apart, so that the rows above lie close together.
CREATE TABLE catalog_entries (
  row   INTEGER PRIMARY KEY,
  entry TEXT NOT NULL -- the feed entry's JSON
) STRICT;

-- Same row ids. The words are folded and parted before they come here.
CREATE VIRTUAL TABLE catalog_search USING fts5 (
  words, content = '', contentless_delete = 1, detail = 'none', columnsize = 1,
  prefix = '1 2 3', tokenize = 'ascii'
);

-- Which books of a peer are here already.
CREATE INDEX transfers_by_book ON transfers (peer, book_id);
