-- How many processes work for a slot, each on a shard of its own: the scheduler's window has room for all of them.
-- Workers of the release before do not say, and count as one.
ALTER TABLE slots ADD COLUMN processes integer NOT NULL DEFAULT 1 CHECK (processes > 0);
