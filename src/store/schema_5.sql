-- Version 5: feeds may be cut by their writers.

-- What was replayed of another fork is forgotten in the transaction that stores the new one, and the
-- feed is replayed from the start.
CREATE TRIGGER catalog_follows_forks AFTER UPDATE OF fork ON cores WHEN NEW.fork IS NOT OLD.fork
BEGIN
  DELETE FROM catalog_search WHERE rowid IN (
    SELECT row FROM catalog_books JOIN catalog_feeds ON feed = number WHERE feed_key = NEW.key
  );
  DELETE FROM catalog_books WHERE feed IN (
    SELECT number FROM catalog_feeds WHERE feed_key = NEW.key
  );
  UPDATE catalog_feeds SET position = 0, next_sequence = 0, books = 0, skipped = 0
    WHERE feed_key = NEW.key;
END;
