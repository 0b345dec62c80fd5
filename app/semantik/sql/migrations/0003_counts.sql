-- How far a job is, from its shards: with a million documents, counting those every two seconds keeps a core busy.

-- Of the plan: documents planned, and those of them that are gone from the source. NULL where the release before
-- made the plan.
ALTER TABLE jobs ADD COLUMN documents bigint, ADD COLUMN removed bigint NOT NULL DEFAULT 0;
-- Of a finished shard: documents whose content had not changed.
ALTER TABLE shards ADD COLUMN skipped integer NOT NULL DEFAULT 0;

CREATE VIEW job_counts AS
SELECT j.id AS job_id,
       coalesce(j.documents, counted.total) AS total,
       CASE WHEN j.documents IS NULL THEN counted.done ELSE j.documents - s.undone END AS done,
       f.failed,
       CASE WHEN j.documents IS NULL THEN counted.skipped ELSE s.skipped END AS skipped,
       CASE WHEN j.documents IS NULL THEN counted.removed ELSE j.removed END AS removed
FROM jobs j
CROSS JOIN LATERAL (
    -- The documents of a shard that has not ended have no outcome, and a cancelled one's never get any.
    SELECT coalesce(sum(documents) FILTER (WHERE state IN ('pending', 'queued', 'running', 'cancelled')), 0)::bigint
               AS undone,
           coalesce(sum(skipped), 0)::bigint AS skipped
    FROM shards WHERE job_id = j.id
) s
CROSS JOIN LATERAL (SELECT count(*) AS failed FROM job_documents WHERE job_id = j.id AND outcome = 'failed') f
CROSS JOIN LATERAL (
    SELECT count(*) AS total, count(outcome) AS done,
           count(*) FILTER (WHERE outcome = 'skipped') AS skipped,
           count(*) FILTER (WHERE outcome = 'removed') AS removed
    FROM job_documents WHERE job_id = j.id AND j.documents IS NULL
) counted;

GRANT SELECT ON job_counts TO semantik_planner, semantik_scheduler, semantik_worker, semantik_operator;

-- Documents of a shard whose lease ran out again and again get one each.
GRANT INSERT (job_id, number, documents, bytes, error) ON shards TO semantik_scheduler;

-- As before; but a job that is being retried in this moment is waited for, and refuses.
CREATE OR REPLACE FUNCTION drop_collection(p_id bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = semantik, public, pg_temp AS $$
BEGIN
    PERFORM FROM collections WHERE id = p_id FOR UPDATE;
    PERFORM FROM jobs WHERE collection_id = p_id FOR UPDATE;
    IF EXISTS (SELECT FROM jobs WHERE collection_id = p_id AND finished_at IS NULL) THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS semantik.chunks_%1$s', p_id);
    DELETE FROM collections WHERE id = p_id;
    RETURN true;
END $$;
