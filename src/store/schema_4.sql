-- Version 4: the view is smaller and quicker to fill.

-- The view is made anew from the feeds, which are kept.
DROP TABLE catalog_search;
DROP TABLE catalog_entries;
DROP TABLE catalog_books;
UPDATE catalog_feeds SET position = 0, next_sequence = 0, books = 0, skipped = 0;

-- The books on offer now: what they are sorted and filtered by. row = feed << 32 | sequence.
CREATE TABLE catalog_books (
  row      INTEGER PRIMARY KEY,
  feed     INTEGER NOT NULL,
  part     INTEGER NOT NULL, -- row >> 14
  block    INTEGER NOT NULL, -- the entry's, in the feed's core
  book_id  TEXT NOT NULL,
  title    TEXT NOT NULL, -- folded and cut, as the next ones are
  author   TEXT NOT NULL,
  added    TEXT NOT NULL,
  format   TEXT NOT NULL,
  language TEXT NOT NULL,
  UNIQUE (feed, book_id)
) STRICT;
-- Each part is sorted by itself, so that books which come one after the other change few pages.
CREATE INDEX catalog_by_title ON catalog_books (part, title, row, format, language);
CREATE INDEX catalog_by_author ON catalog_books (part, author, title, row, format, language);
CREATE INDEX catalog_by_added ON catalog_books (part, added, row, format, language);

-- The JSON of the books' entries, where the feeds' cores keep it.
CREATE INDEX cores_by_key ON cores (key);
CREATE VIEW catalog_entries AS
  SELECT book.row AS row, book.feed AS feed, book.book_id AS book_id, CAST (block.bytes AS TEXT) AS entry
  FROM catalog_books AS book
  CROSS JOIN catalog_feeds AS feed ON feed.number = book.feed
  CROSS JOIN cores AS core ON core.key = feed.feed_key
  CROSS JOIN core_blocks AS block ON block.place = (core.id << 40) | book.block;

-- Same row ids. The words are folded and parted before they come here.
CREATE VIRTUAL TABLE catalog_search USING fts5 (
  words, content = '', contentless_delete = 1, detail = 'none', columnsize = 1, tokenize = 'ascii'
);
-- Its words in order, with the rows that have them.
CREATE VIRTUAL TABLE catalog_words USING fts5vocab (catalog_search, instance);
