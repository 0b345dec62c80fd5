-- name: insert
INSERT INTO jobs (collection_id, uri, priority, allow_removal, submitted_by)
VALUES (%(collection)s, %(uri)s, %(priority)s, %(allow_removal)s, %(submitted_by)s)
RETURNING id

-- name: by_prefix
SELECT j.id, c.name AS collection, j.uri, j.state, j.priority, j.allow_removal, j.submitted_by, j.planned,
       j.listed, j.unchanged, j.error, j.created_at, j.started_at, j.finished_at,
       d.total AS documents_total, d.done AS documents_done
FROM jobs j
JOIN collections c ON c.id = j.collection_id
CROSS JOIN LATERAL (SELECT count(*) AS total, count(outcome) AS done FROM job_documents WHERE job_id = j.id) d
WHERE starts_with(j.id::text, %(prefix)s)
ORDER BY j.created_at, j.id

-- name: listing
SELECT j.id, c.name AS collection, j.uri, j.state, j.priority, j.allow_removal, j.submitted_by, j.planned,
       j.listed, j.unchanged, j.error, j.created_at, j.started_at, j.finished_at,
       d.total AS documents_total, d.done AS documents_done
FROM jobs j
JOIN collections c ON c.id = j.collection_id
CROSS JOIN LATERAL (SELECT count(*) AS total, count(outcome) AS done FROM job_documents WHERE job_id = j.id) d
WHERE %(everything)s OR j.finished_at IS NULL
ORDER BY j.created_at, j.id

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

-- name: cancel_shards
UPDATE shards
SET state = 'cancelled', finished_at = now(), fence = fence + 1, lease_until = NULL
WHERE job_id = %(job)s AND state IN ('pending', 'queued', 'running')

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
