-- Version 1. Keys are BLOBs of 32 bytes unless a column says z32; times are Unix milliseconds.

-- Small facts about this node.
CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value ANY NOT NULL
) STRICT, WITHOUT ROWID;
