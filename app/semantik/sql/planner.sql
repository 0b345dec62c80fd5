-- name: end_own
-- An earlier planning by this very planner is dead; its session may still hold rows.
SELECT pg_terminate_backend(a.pid, 5000)
FROM jobs j
JOIN pg_stat_activity a ON a.pid = j.backend_pid AND a.backend_start = j.backend_start
WHERE j.id = %(job)s AND j.state = 'planning' AND j.planner = %(node)s AND a.pid <> pg_backend_pid()

-- name: claim
UPDATE jobs j
SET state = 'planning', fence = j.fence + 1, lease_until = now() + make_interval(secs => %(lease)s),
    planner = %(node)s, plan_attempts = plan_attempts + %(count)s::boolean::integer,
    started_at = coalesce(started_at, now()), listed = 0,
    backend_pid = pg_backend_pid(),
    backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
FROM collections c
WHERE j.id = %(job)s AND c.id = j.collection_id AND NOT j.planned AND NOT j.paused AND c.index_state <> 'building'
  AND (j.state = 'queued' OR (j.state = 'planning' AND (j.lease_until IS NULL OR j.planner = %(node)s)))
  -- A message that kills its planner comes back to it at once: its lease must run out for the job to be given up.
  AND NOT (%(count)s AND j.plan_attempts >= %(limit)s)
RETURNING j.id::text, j.fence, j.uri, j.collection_id, j.allow_removal, j.plan_attempts

-- name: renew
UPDATE jobs SET lease_until = now() + make_interval(secs => %(lease)s), listed = %(listed)s
WHERE id = %(job)s AND fence = %(fence)s AND state = 'planning'

-- name: release
-- Planning broke off; the scheduler sends it again. That its planner was stopped is no mark against the job.
UPDATE jobs SET lease_until = NULL, fence = fence + 1, error = %(error)s,
    plan_attempts = greatest(plan_attempts - %(interrupted)s::boolean::integer, 0)
WHERE id = %(job)s AND fence = %(fence)s AND state = 'planning'

-- name: fail
UPDATE jobs SET state = 'failed', finished_at = now(), lease_until = NULL, fence = fence + 1, error = %(error)s
WHERE id = %(job)s AND fence = %(fence)s AND state = 'planning'

-- name: make_listed
CREATE TEMPORARY TABLE listed (
    uri text COLLATE "C" NOT NULL, size bigint, version text, error text
) ON COMMIT DROP

-- name: index_listed
-- The database knows nothing yet of what documents it holds; with this no plan is a bad one.
CREATE INDEX ON listed (uri)

-- name: weigh
-- What the listing has, and what the collection holds under the root that the listing lacks.
SELECT (SELECT count(DISTINCT uri) FROM listed) AS listed,
       count(*) FILTER (WHERE d.state = 'embedded') AS known,
       count(*) FILTER (WHERE d.state = 'embedded' AND l.uri IS NULL) AS gone
FROM documents d
LEFT JOIN (SELECT DISTINCT uri FROM listed) l ON l.uri = d.uri
WHERE d.collection_id = %(collection)s
  AND (d.uri = %(root)s OR (d.uri >= %(below)s AND d.uri < %(beyond)s))

-- name: add_documents
INSERT INTO documents (collection_id, uri)
SELECT DISTINCT %(collection)s, uri FROM listed
ON CONFLICT (collection_id, uri) DO NOTHING

-- name: target
-- Source bytes per second of a process of an average live slot, and how many processes there are. A slot that has not
-- measured its speed yet counts as what its kind of device does.
SELECT coalesce(avg(coalesce(bytes_per_second,
                             CASE WHEN device LIKE 'cuda%%' THEN %(gpu_rate)s ELSE %(cpu_rate)s END)),
                %(cpu_rate)s)::float8,
       coalesce(sum(processes), 0)::integer
FROM slots WHERE state IN ('idle', 'busy') AND last_seen > now() - make_interval(secs => %(live)s)

-- name: make_planned
-- New and changed documents. Each weighs its size, and at least its share of a full shard, so that a running sum
-- cut at multiples of the target holds at most so many documents per shard.
CREATE TEMPORARY TABLE planned ON COMMIT DROP AS
SELECT d.id, l.uri, l.size, l.version, l.error,
       greatest(coalesce(l.size, 0), ceil(%(target)s / %(most)s)::bigint)::numeric AS weight,
       -- One that was set aside takes nothing with it should it do so again.
       coalesce(starts_with(d.error, %(quarantined)s) OR starts_with(d.error, %(given_up)s), false) AS alone
FROM (SELECT DISTINCT ON (uri) * FROM listed) l
JOIN documents d ON d.collection_id = %(collection)s AND d.uri = l.uri
WHERE l.error IS NOT NULL OR l.version IS NULL OR d.state <> 'embedded' OR d.stale
   OR d.size IS DISTINCT FROM l.size OR d.version IS DISTINCT FROM l.version

-- name: total
SELECT count(*), coalesce(sum(coalesce(size, 0)), 0)::bigint FROM listed WHERE error IS NULL

-- name: cut
WITH cut AS (
    SELECT id, uri, size, version, alone,
           CASE WHEN alone THEN id
                ELSE floor((sum(weight) OVER (PARTITION BY alone ORDER BY uri) - weight) / %(target)s) END AS part
    FROM planned WHERE error IS NULL
), numbered AS (
    SELECT *, dense_rank() OVER (ORDER BY alone, part)::integer AS number FROM cut
), made AS (
    INSERT INTO shards (job_id, number, documents, bytes)
    SELECT %(job)s::uuid, number, count(*), coalesce(sum(size), 0) FROM numbered GROUP BY number ORDER BY number
    RETURNING id, number
)
INSERT INTO job_documents (job_id, document_id, uri, size, version, shard_id)
SELECT %(job)s::uuid, n.id, n.uri, n.size, n.version, m.id FROM numbered n JOIN made m USING (number)

-- name: refuse
-- Documents that the listing already knows cannot be read.
WITH refused AS (
    INSERT INTO job_documents (job_id, document_id, uri, size, version, outcome, error)
    SELECT %(job)s::uuid, id, uri, size, version, 'failed', error FROM planned WHERE error IS NOT NULL
    RETURNING document_id, error
)
UPDATE documents d
SET state = CASE WHEN d.chunks > 0 THEN 'embedded' ELSE 'failed' END, stale = d.chunks > 0,
    error = r.error, updated_at = now()
FROM refused r WHERE d.id = r.document_id

-- name: make_gone
CREATE TEMPORARY TABLE gone ON COMMIT DROP AS
SELECT d.id, d.uri FROM documents d
WHERE d.collection_id = %(collection)s
  AND (d.uri = %(root)s OR (d.uri >= %(below)s AND d.uri < %(beyond)s))
  AND NOT EXISTS (SELECT FROM listed l WHERE l.uri = d.uri)

-- name: remove_chunks
DELETE FROM {chunks} c USING gone g WHERE c.document_id = g.id

-- name: record_removed
INSERT INTO job_documents (job_id, document_id, uri, outcome) SELECT %(job)s::uuid, id, uri, 'removed' FROM gone

-- name: remove_documents
DELETE FROM documents d USING gone g WHERE d.id = g.id

-- name: planned
-- The last statement of planning: whoever lost the fence rolls everything back.
UPDATE jobs
SET planned = true, state = 'running', lease_until = NULL, error = NULL, listed = %(listed)s,
    unchanged = %(listed)s - (SELECT count(*) FROM planned), (documents, removed) = (
        SELECT count(*), count(*) FILTER (WHERE outcome = 'removed') FROM job_documents WHERE job_id = %(job)s
    )
WHERE id = %(job)s AND fence = %(fence)s AND state = 'planning' AND NOT planned
