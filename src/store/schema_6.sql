-- Version 6: what a person approved is named.

-- The edition of the book that was approved, and the tree hash of its bytes once they were read.
ALTER TABLE transfers ADD COLUMN approved_edition BLOB;
ALTER TABLE transfers ADD COLUMN approved_hash BLOB;

-- Approvals so far named no bytes. Those of transfers that go on are for the bytes that were granted; all others end.
UPDATE transfers SET approved_edition = zeroblob(32), approved_hash = tree_hash
  WHERE approved AND tree_hash IS NOT NULL AND state NOT IN ('completed', 'denied', 'cancelled', 'failed');
UPDATE transfers SET approved = 0 WHERE approved_hash IS NULL;
