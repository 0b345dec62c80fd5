-- name: end_expired_shards
-- A frozen worker may still hold rows in an open transaction: its session ends before its shard goes to another.
SELECT s.id, pg_terminate_backend(a.pid, 5000)
FROM shards s
JOIN pg_stat_activity a ON a.pid = s.backend_pid AND a.backend_start = s.backend_start
WHERE s.state = 'running' AND s.lease_until < now()

-- name: reap_shards
-- `count` is 0 where the database or this loop was away meanwhile, which no worker can help. Only a document that is
-- alone in its shard can be why its lease runs out each time.
UPDATE shards
SET expiries = expiries + %(count)s, fence = fence + 1, lease_until = NULL,
    state = CASE WHEN expiries + %(count)s >= %(limit)s AND documents = 1 THEN 'failed' ELSE 'pending' END,
    finished_at = CASE WHEN expiries + %(count)s >= %(limit)s AND documents = 1 THEN now() END
WHERE state = 'running' AND lease_until < now()
RETURNING id, job_id::text, slot, expiries, state

-- name: set_all_apart
-- A shard of its own for each document of one whose lease ran out too often.
WITH alone AS (
    SELECT jd.job_id, jd.document_id, coalesce(jd.size, 0) AS bytes,
           row_number() OVER (ORDER BY jd.document_id)
               + (SELECT max(number) FROM shards
                  WHERE job_id = (SELECT job_id FROM shards WHERE id = %(shard)s)) AS number
    FROM job_documents jd
    WHERE jd.shard_id = %(shard)s AND jd.outcome IS NULL
), made AS (
    INSERT INTO shards (job_id, number, documents, bytes, error)
    SELECT job_id, number, 1, bytes, %(reason)s FROM alone
    RETURNING id, number
)
UPDATE job_documents jd SET shard_id = made.id
FROM alone JOIN made USING (number)
WHERE jd.job_id = alone.job_id AND jd.document_id = alone.document_id

-- name: end_expired_plans
SELECT j.id, pg_terminate_backend(a.pid, 5000)
FROM jobs j
JOIN pg_stat_activity a ON a.pid = j.backend_pid AND a.backend_start = j.backend_start
WHERE j.state = 'planning' AND j.lease_until < now()

-- name: reap_plans
UPDATE jobs SET fence = fence + 1, lease_until = NULL
WHERE state = 'planning' AND lease_until < now()
RETURNING id::text, planner, plan_attempts

-- name: give_up_plans
UPDATE jobs
SET state = 'failed', finished_at = now(), fence = fence + 1,
    error = format('planning broke off %%s times%%s', plan_attempts, '; the last reason: ' || error)
WHERE state = 'planning' AND lease_until IS NULL AND plan_attempts >= %(limit)s
RETURNING id::text

-- name: foreign
-- Unfinished jobs whose collection is of another model than the cluster's: no worker may claim a shard of them.
SELECT j.id::text, c.name, c.model, c.model_revision
FROM jobs j
JOIN collections c ON c.id = j.collection_id
WHERE j.finished_at IS NULL AND c.model_revision <> %(model_revision)s
ORDER BY j.created_at

-- name: fail_job
UPDATE jobs
SET state = 'failed', finished_at = now(), fence = fence + 1, lease_until = NULL, error = %(reason)s
WHERE id = %(job)s AND state IN ('queued', 'planning', 'running')

-- name: fail_shards
UPDATE shards
SET state = 'failed', finished_at = now(), fence = fence + 1, lease_until = NULL, error = %(reason)s
WHERE job_id = %(job)s AND state IN ('pending', 'queued', 'running')
RETURNING id

-- name: running
SELECT id::text FROM jobs WHERE state = 'running' ORDER BY created_at

-- name: start
-- The next job of each collection that has no active one, and whose index is not just being built. One that has its
-- plan, being tried again, needs no planner.
UPDATE jobs j
SET state = CASE WHEN j.planned THEN 'running' ELSE 'planning' END, fence = j.fence + 1,
    started_at = coalesce(j.started_at, now()), sent_at = NULL
FROM (
    SELECT DISTINCT ON (q.collection_id) q.id
    FROM jobs q
    JOIN collections c ON c.id = q.collection_id AND c.index_state <> 'building'
    -- Who submits a job sends its first message; this is for those that waited, or whose message found no Redis.
    WHERE q.state = 'queued' AND NOT q.paused AND q.created_at < now() - interval '2 seconds'
      AND NOT EXISTS (SELECT FROM jobs a WHERE a.collection_id = q.collection_id AND a.state IN ('planning', 'running'))
    ORDER BY q.collection_id, q.priority DESC, q.created_at, q.id
) next
WHERE j.id = next.id AND j.state = 'queued' AND NOT j.paused
RETURNING j.id::text

-- name: settle_removed
-- Documents that another job removed while this one, with its plan, waited for its turn. No shard holds them any more.
WITH gone AS (
    SELECT jd.document_id, jd.shard_id, coalesce(jd.size, 0) AS bytes
    FROM job_documents jd
    WHERE jd.job_id = %(job)s AND jd.outcome IS NULL
      AND NOT EXISTS (SELECT FROM documents d WHERE d.id = jd.document_id)
), settled AS (
    UPDATE job_documents jd SET outcome = 'removed', shard_id = NULL
    FROM gone WHERE jd.job_id = %(job)s AND jd.document_id = gone.document_id
), counted AS (
    UPDATE jobs SET removed = removed + (SELECT count(*) FROM gone) WHERE id = %(job)s
)
UPDATE shards s
SET documents = s.documents - lost.documents, bytes = s.bytes - lost.bytes,
    state = CASE WHEN s.documents = lost.documents THEN 'done' ELSE s.state END,
    finished_at = CASE WHEN s.documents = lost.documents THEN now() END
FROM (SELECT shard_id, count(*) AS documents, sum(bytes) AS bytes FROM gone GROUP BY shard_id) lost
WHERE s.id = lost.shard_id AND s.state = 'pending'

-- name: unplanned
-- Jobs that wait for the planner; `due` are those whose message was not sent, or long enough ago to have been lost.
SELECT id::text, coalesce(sent_at < now() - make_interval(secs => %(grace)s), true) AS due, sent_at IS NULL AS unsent
FROM jobs WHERE state = 'planning' AND lease_until IS NULL AND NOT paused
ORDER BY priority DESC, created_at

-- name: sent_plan
UPDATE jobs SET sent_at = now() WHERE id = %(job)s AND state = 'planning'

-- name: window
-- Shards that may be handed out now: so many per process of a live slot, less those in Redis or at work.
SELECT greatest(0, %(per_slot)s * (SELECT coalesce(sum(processes), 0)::integer FROM slots
                                   WHERE state IN ('idle', 'busy')
                                     AND last_seen > now() - make_interval(secs => %(live)s))
                   - (SELECT count(*) FROM shards WHERE state IN ('queued', 'running')))

-- name: hand_out
-- Chosen once: as a subquery of the UPDATE the choice may run for each row, and skips what it has locked each time.
WITH next AS MATERIALIZED (
    SELECT s.id, j.priority, j.created_at FROM shards s
    JOIN jobs j ON j.id = s.job_id AND j.state = 'running' AND j.planned AND NOT j.paused
    WHERE s.state = 'pending'
    ORDER BY j.priority DESC, j.created_at, s.id
    LIMIT %(window)s
    FOR UPDATE OF s SKIP LOCKED
    -- So that a pause, which comes in the same moment, finds what this has handed out.
    FOR SHARE OF j SKIP LOCKED
), handed AS (
    UPDATE shards s SET state = 'queued', queued_at = now()
    FROM next
    WHERE s.id = next.id AND s.state = 'pending'
    RETURNING s.id, s.job_id::text AS job
)
SELECT handed.id, handed.job FROM handed JOIN next USING (id)
ORDER BY next.priority DESC, next.created_at, handed.id

-- name: queued
-- Shards whose message should be in Redis; `due` are those sent long enough ago to have been lost.
SELECT count(*) AS all, count(*) FILTER (WHERE queued_at < now() - make_interval(secs => %(grace)s)) AS due
FROM shards WHERE state = 'queued'

-- name: resend
-- One that is just being claimed has had its message; its claim may be frozen, and this must not wait for it.
WITH lost AS MATERIALIZED (
    SELECT id FROM shards
    WHERE state = 'queued' AND queued_at < now() - make_interval(secs => %(grace)s)
    ORDER BY queued_at, id LIMIT %(missing)s
    FOR UPDATE SKIP LOCKED
)
UPDATE shards s SET queued_at = now()
FROM lost
WHERE s.id = lost.id AND s.state = 'queued'
RETURNING s.id, s.job_id::text

-- name: slots
SELECT slot FROM slots

-- name: wanted
-- Of these shards and jobs, those whose message still stands for something to do.
SELECT 'shard', id::text FROM shards WHERE id = ANY(%(shards)s::bigint[]) AND state IN ('queued', 'running')
UNION ALL
SELECT 'job', id::text FROM jobs WHERE id::text = ANY(%(jobs)s::text[]) AND finished_at IS NULL AND NOT planned

-- name: end_frozen
-- A scheduler that holds the lock and shows no sign of life: stopped, or on a host that hangs. The lock's key is a
-- bigint, which pg_locks shows in two halves.
SELECT a.pid, pg_terminate_backend(a.pid, 5000)
FROM pg_locks l
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint) = hashtext('semantik scheduler')::bigint
  AND a.backend_start < now() - make_interval(secs => %(silent)s)
  AND NOT EXISTS (SELECT FROM heartbeats h
                  WHERE h.name = 'scheduler' AND h.last_seen > now() - make_interval(secs => %(silent)s))

-- name: active
-- A queued job with a fence is one that ended and is tried again: its result is to be replaced.
SELECT id::text, planner FROM jobs
WHERE state IN ('planning', 'running') OR (state = 'queued' AND fence > 0)
ORDER BY created_at

-- name: unreported
SELECT j.id::text, j.state, j.planner, j.error, c.name, j.uri, j.listed, j.unchanged,
       coalesce(extract(epoch FROM j.finished_at - j.started_at), 0)::float8 AS seconds, j.fence
FROM jobs j
JOIN collections c ON c.id = j.collection_id
WHERE j.finished_at IS NOT NULL AND j.reported_at IS NULL
ORDER BY j.finished_at LIMIT 100

-- name: reported
-- Not where it was tried again meanwhile: its next end is another.
UPDATE jobs SET reported_at = now() WHERE id = %(job)s AND fence = %(fence)s AND finished_at IS NOT NULL

-- name: tell_again
UPDATE jobs SET reported_at = NULL WHERE id::text = ANY(%(jobs)s::text[]) AND finished_at IS NOT NULL

-- name: want_index
-- Chosen first: adding up the documents is dear, and would be done at each turn of a job.
WITH idle AS MATERIALIZED (
    SELECT c.id FROM collections c
    WHERE c.index_state <> 'ready'
      AND NOT EXISTS (SELECT FROM jobs j WHERE j.collection_id = c.id AND j.state IN ('planning', 'running'))
)
UPDATE collections c SET index_state = 'building'
FROM idle
WHERE c.id = idle.id AND c.index_state = 'none'
  AND (SELECT coalesce(sum(d.chunks), 0) FROM documents d WHERE d.collection_id = c.id) > %(exact)s
RETURNING c.id, c.name

-- name: forget_builds
-- Of a scheduler that died while an index was built: its successor looks again, and waits for a build that goes on.
UPDATE collections SET index_state = 'none' WHERE index_state = 'building'

-- name: forget_build
-- One that failed: the collection's jobs go on, and it is tried again once none is active.
UPDATE collections SET index_state = 'none' WHERE id = %(collection)s AND index_state = 'building'

-- name: purge
-- One at a time: its documents go with it, which may be millions.
DELETE FROM jobs
WHERE id = (SELECT id FROM jobs
            WHERE finished_at < now() - make_interval(secs => %(keep)s) AND reported_at IS NOT NULL
            ORDER BY finished_at LIMIT 1)
  -- Asked again of the row as it is once it is this session's: somebody may just have retried it.
  AND finished_at < now() - make_interval(secs => %(keep)s)

-- name: purge_slots
DELETE FROM slots WHERE last_seen < now() - make_interval(secs => %(keep)s)
