-- Retry and pause, and the state machine kept by the database itself: docs/architecture.md, "States", has its tables.
-- It is applied while services of the release before run, so what those do stays legal. Nothing here scans a large
-- table. A trigger's function runs only to refuse: a legal step costs a comparison, and a statement that sets none of
-- the trigger's columns, as a renewal, nothing.

-- Of an unfinished job: nothing of it is planned, handed out or claimed. In one that has ended it means nothing.
ALTER TABLE jobs ADD COLUMN paused boolean NOT NULL DEFAULT false;

-- A job whose failed documents are tried again waits in 'queued' with its plan.
ALTER TABLE jobs DROP CONSTRAINT jobs_check2;
ALTER TABLE jobs ADD CONSTRAINT jobs_planning_unplanned CHECK (state <> 'planning' OR NOT planned);

-- Arguments: what it is, the column with its key, the column with its state, and why not (for a bare step: nothing).
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was jsonb := to_jsonb(OLD);
    wanted jsonb := to_jsonb(NEW);
BEGIN
    RAISE EXCEPTION USING
        MESSAGE = format('%s %s may not go from %s to %s', TG_ARGV[0], was ->> TG_ARGV[1],
                         coalesce(was ->> TG_ARGV[2], 'open'), coalesce(wanted ->> TG_ARGV[2], 'open'))
                  || coalesce(': ' || TG_ARGV[3], ''),
        ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
END $$;

CREATE FUNCTION refuse_open_shards() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM semantik.shards
               WHERE job_id = NEW.id AND state IN ('pending', 'queued', 'running')) THEN
        RAISE EXCEPTION 'job % may not go from % to %: some of its shards are open', NEW.id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END $$;

-- Jobs.
CREATE TRIGGER jobs_transition BEFORE UPDATE OF state ON jobs FOR EACH ROW
WHEN (OLD.state <> NEW.state AND (OLD.state, NEW.state) NOT IN (
    ('queued', 'planning'), ('queued', 'running'), ('queued', 'failed'), ('queued', 'cancelled'),
    ('planning', 'running'), ('planning', 'failed'), ('planning', 'cancelled'),
    ('running', 'completed'), ('running', 'completed_with_errors'), ('running', 'failed'), ('running', 'cancelled'),
    ('completed_with_errors', 'queued'), ('failed', 'queued')
))
EXECUTE FUNCTION refuse_change('job', 'id', 'state');

-- With the state's CHECKs: only planning makes a plan, and a job never loses it.
CREATE TRIGGER jobs_plan BEFORE UPDATE OF planned, state ON jobs FOR EACH ROW
WHEN (OLD.planned <> NEW.planned AND NOT (NEW.planned AND OLD.state = 'planning' AND NEW.state = 'running'))
EXECUTE FUNCTION refuse_change('job', 'id', 'state', 'only planning makes a plan, and a plan stays');

-- A lease that begins, is taken or given back; planning that ends without a plan; a job begun again or stopped.
CREATE TRIGGER jobs_fence BEFORE UPDATE OF state, fence, lease_until, plan_attempts ON jobs FOR EACH ROW
WHEN (NEW.fence < OLD.fence OR (NEW.fence = OLD.fence AND (
    (NEW.lease_until IS NOT NULL AND OLD.lease_until IS NULL)
    OR (OLD.lease_until IS NOT NULL AND NEW.lease_until IS NULL AND NEW.state <> 'running')
    OR (OLD.state = 'planning' AND NEW.state NOT IN ('planning', 'running'))
    OR (OLD.state = 'queued' AND NEW.state = 'running')
    OR (OLD.state = 'running' AND NEW.state = 'cancelled')
    OR (OLD.state <> 'queued' AND NEW.state = 'queued')
    OR OLD.plan_attempts <> NEW.plan_attempts
)))
EXECUTE FUNCTION refuse_change('job', 'id', 'state', 'its fence must rise');

CREATE TRIGGER jobs_holder BEFORE UPDATE OF planner ON jobs FOR EACH ROW
WHEN (OLD.lease_until IS NOT NULL AND NEW.lease_until IS NOT NULL AND OLD.planner IS DISTINCT FROM NEW.planner)
EXECUTE FUNCTION refuse_change('job', 'id', 'state', 'another planner holds it');

CREATE TRIGGER jobs_complete BEFORE UPDATE OF state ON jobs FOR EACH ROW
WHEN (OLD.state <> NEW.state AND NEW.state IN ('completed', 'completed_with_errors'))
EXECUTE FUNCTION refuse_open_shards();

-- Shards. One is done without having been held only when none of its documents is left in it.
CREATE TRIGGER shards_transition BEFORE UPDATE OF state ON shards FOR EACH ROW
WHEN (OLD.state <> NEW.state AND (OLD.state, NEW.state) NOT IN (
    ('pending', 'queued'), ('pending', 'running'), ('pending', 'failed'), ('pending', 'cancelled'),
    ('queued', 'pending'), ('queued', 'running'), ('queued', 'failed'), ('queued', 'cancelled'),
    ('running', 'pending'), ('running', 'done'), ('running', 'failed'), ('running', 'cancelled')
) AND NOT (OLD.state = 'pending' AND NEW.state = 'done' AND NEW.documents = 0))
EXECUTE FUNCTION refuse_change('shard', 'id', 'state');

CREATE TRIGGER shards_fence BEFORE UPDATE OF state, fence, attempt ON shards FOR EACH ROW
WHEN (NEW.fence < OLD.fence OR (NEW.fence = OLD.fence AND (
    (OLD.state <> 'running' AND NEW.state = 'running')
    OR (OLD.state = 'running' AND NEW.state NOT IN ('running', 'done'))
    OR OLD.attempt <> NEW.attempt
)))
EXECUTE FUNCTION refuse_change('shard', 'id', 'state', 'its fence must rise');

CREATE TRIGGER shards_holder BEFORE UPDATE OF slot ON shards FOR EACH ROW
WHEN (OLD.state = 'running' AND NEW.state = 'running' AND OLD.slot IS DISTINCT FROM NEW.slot)
EXECUTE FUNCTION refuse_change('shard', 'id', 'state', 'another slot holds it');

-- A job's documents: an outcome is final, except that a failure may be tried again in another shard.
CREATE TRIGGER job_documents_transition BEFORE UPDATE OF outcome, shard_id ON job_documents FOR EACH ROW
WHEN (OLD.outcome IS NOT NULL AND (
    (NEW.outcome IS DISTINCT FROM OLD.outcome AND NOT (OLD.outcome = 'failed' AND NEW.outcome IS NULL))
    OR (NEW.outcome IS NULL) <> (NEW.shard_id IS DISTINCT FROM OLD.shard_id)
))
EXECUTE FUNCTION refuse_change('document', 'document_id', 'outcome');

-- Retry, by the operator: new shards, and failures that are open again.
GRANT INSERT (job_id, number, documents, bytes) ON shards TO semantik_operator;
GRANT UPDATE (shard_id, outcome, error) ON job_documents TO semantik_operator;
