-- name: insert
INSERT INTO jobs (collection_id, uri, priority, allow_removal, submitted_by)
VALUES (%(collection)s, %(uri)s, %(priority)s, %(allow_removal)s, %(submitted_by)s)
RETURNING id

-- name: by_prefix
SELECT j.id, c.name AS collection, j.uri, j.state, j.priority, j.allow_removal, j.submitted_by, j.planned,
       j.paused AND j.finished_at IS NULL AS paused, j.listed, j.unchanged, j.error, j.created_at, j.started_at, j.finished_at,
       d.total AS documents_total, d.done AS documents_done
FROM jobs j
JOIN collections c ON c.id = j.collection_id
JOIN job_counts d ON d.job_id = j.id
WHERE starts_with(j.id::text, %(prefix)s)
ORDER BY j.created_at, j.id

-- name: listing
SELECT j.id, c.name AS collection, j.uri, j.state, j.priority, j.allow_removal, j.submitted_by, j.planned,
       j.paused AND j.finished_at IS NULL AS paused, j.listed, j.unchanged, j.error, j.created_at, j.started_at, j.finished_at,
       d.total AS documents_total, d.done AS documents_done
FROM jobs j
JOIN collections c ON c.id = j.collection_id
JOIN job_counts d ON d.job_id = j.id
WHERE %(everything)s OR j.finished_at IS NULL
ORDER BY j.created_at, j.id

-- name: came_back
-- Why shards that are not done yet were given up last: a crash, or a slot that could not do them.
SELECT error FROM shards
WHERE job_id = %(job)s AND state IN ('pending', 'queued', 'running') AND error IS NOT NULL
ORDER BY number

-- name: failures
SELECT uri, error FROM job_documents WHERE job_id = %(job)s AND outcome = 'failed' ORDER BY uri

-- name: waits
-- Of all finished shards together, seconds: NULL for the work itself, else by the stage that waited.
SELECT NULL AS stage, sum(extract(epoch FROM finished_at - started_at))::float8 AS seconds
FROM shards WHERE job_id = %(job)s AND state = 'done' AND waits IS NOT NULL
HAVING count(*) > 0
UNION ALL
SELECT stage, sum(seconds::float8) FROM shards, jsonb_each_text(waits) AS each (stage, seconds)
WHERE job_id = %(job)s AND state = 'done' GROUP BY stage;

-- name: cancel
UPDATE jobs
SET state = 'cancelled', finished_at = now(), fence = fence + 1, lease_until = NULL
WHERE id = %(job)s AND state IN ('queued', 'planning', 'running')

-- name: lock_shards
-- Waits for a crash that just sets documents apart: their new shards are seen by the next statement alone.
SELECT id FROM shards
WHERE job_id = %(job)s AND state IN ('pending', 'queued', 'running')
ORDER BY id
FOR NO KEY UPDATE

-- name: cancel_shards
UPDATE shards
SET state = 'cancelled', finished_at = now(), fence = fence + 1, lease_until = NULL
WHERE job_id = %(job)s AND state IN ('pending', 'queued', 'running')

-- name: pause
UPDATE jobs SET paused = true WHERE id = %(job)s AND state IN ('queued', 'planning', 'running')

-- name: pause_shards
-- What waits in Redis goes back; its message will find nothing to do. What is at work ends by itself.
UPDATE shards SET state = 'pending', queued_at = NULL WHERE job_id = %(job)s AND state = 'queued'

-- name: resume
-- A message for the planner that came meanwhile was left: the scheduler sends another.
UPDATE jobs SET paused = false, sent_at = NULL
WHERE id = %(job)s AND paused AND state IN ('queued', 'planning', 'running')

-- name: retry
-- One that failed before it had a plan is planned anew.
UPDATE jobs
SET state = 'queued', fence = fence + 1, paused = false, plan_attempts = 0, error = NULL, started_at = NULL,
    finished_at = NULL, reported_at = NULL, sent_at = NULL
WHERE id = %(job)s AND state IN ('completed_with_errors', 'failed')
RETURNING planned

-- name: retry_given
-- Of these documents, whether each failed in the job, and whether the collection still has it.
SELECT given.uri, jd.document_id IS NOT NULL AS failed, d.id IS NOT NULL AS held
FROM unnest(%(documents)s::text[]) WITH ORDINALITY given (uri, place)
LEFT JOIN job_documents jd ON jd.job_id = %(job)s AND jd.uri = given.uri AND jd.outcome = 'failed'
LEFT JOIN documents d ON d.id = jd.document_id
ORDER BY given.place

-- name: retry_documents
-- Failed documents, all or the given ones, come into new shards: alone where they were set aside, else in shards of
-- as many bytes as the job's largest and of at most so many documents. One that has left the collection since keeps
-- its failure.
WITH again AS (
    SELECT jd.document_id, coalesce(jd.size, 0) AS bytes, jd.uri,
           starts_with(jd.error, %(quarantined)s) OR starts_with(jd.error, %(given_up)s) AS alone
    FROM job_documents jd
    JOIN documents d ON d.id = jd.document_id
    WHERE jd.job_id = %(job)s AND jd.outcome = 'failed'
      AND (%(all)s OR jd.uri = ANY(%(documents)s::text[]))
), target AS (
    SELECT greatest(max(bytes), %(most)s)::numeric AS bytes FROM shards WHERE job_id = %(job)s
), weighed AS (
    -- As in planning: at least a document's share of a full shard, cut at multiples of the target.
    SELECT again.*, target.bytes AS target, greatest(again.bytes, ceil(target.bytes / %(most)s)) AS weight
    FROM again, target
), cut AS (
    SELECT document_id, bytes, uri, alone,
           CASE WHEN alone THEN document_id
                ELSE floor((sum(weight) OVER (PARTITION BY alone ORDER BY uri) - weight) / target) END AS part
    FROM weighed
), numbered AS (
    SELECT *, dense_rank() OVER (ORDER BY alone, part)::integer
              + (SELECT coalesce(max(number), 0) FROM shards WHERE job_id = %(job)s) AS number
    FROM cut
), made AS (
    INSERT INTO shards (job_id, number, documents, bytes)
    SELECT %(job)s::uuid, number, count(*), sum(bytes) FROM numbered GROUP BY number ORDER BY number
    RETURNING id, number
)
UPDATE job_documents jd SET outcome = NULL, error = NULL, shard_id = made.id
FROM numbered JOIN made USING (number)
WHERE jd.job_id = %(job)s AND jd.document_id = numbered.document_id AND jd.outcome = 'failed'

-- name: close
-- Tried by whoever may have finished the last shard, in a transaction of its own, so that the last one sees all.
UPDATE jobs j
SET (state, error) = (
        SELECT CASE WHEN d.failed = 0 THEN 'completed'
                    WHEN d.failed = d.total AND j.unchanged = 0 THEN 'failed'
                    ELSE 'completed_with_errors' END,
               CASE WHEN d.failed > 0 AND d.failed = d.total AND j.unchanged = 0
                    THEN format('none of %%s documents could be embedded; the first: %%s', d.total, d.reason) END
        FROM (SELECT count(*) AS total, count(*) FILTER (WHERE outcome = 'failed') AS failed,
                     min(error) FILTER (WHERE outcome = 'failed') AS reason
              FROM job_documents WHERE job_id = j.id) d
    ),
    finished_at = now()
WHERE j.id = %(job)s AND j.state = 'running' AND j.planned
  AND NOT EXISTS (SELECT FROM shards s WHERE s.job_id = j.id AND s.state IN ('pending', 'queued', 'running'))
RETURNING j.state
