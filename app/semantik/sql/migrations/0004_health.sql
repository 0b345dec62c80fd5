-- A slot whose GPU is in trouble says so. Its state is one that neither the scheduler's window nor the planner's count of
-- slots has ever taken for live, so those of the release before leave it out too; its workers write no `trouble`.
ALTER TABLE slots ADD COLUMN trouble text;  -- why, in words; read it by the state alone: an older worker leaves it there

ALTER TABLE slots DROP CONSTRAINT slots_state_check;
ALTER TABLE slots ADD CONSTRAINT slots_state_check
    CHECK (state IN ('starting', 'idle', 'busy', 'resting', 'condemned', 'draining', 'stopped'));
