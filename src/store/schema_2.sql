-- Version 2: where peers are.

ALTER TABLE peers ADD COLUMN address TEXT; -- host:port, given here

-- Where peers were reached. public_key is z32.
CREATE TABLE peer_addresses (
  public_key TEXT NOT NULL,
  address    TEXT NOT NULL,
  reached_at INTEGER NOT NULL,
  PRIMARY KEY (public_key, address)
) STRICT, WITHOUT ROWID;
