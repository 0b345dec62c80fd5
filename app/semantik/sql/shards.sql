-- name: end_own
-- An earlier claim of this very slot is dead; its session may still hold rows.
SELECT pg_terminate_backend(a.pid, 5000)
FROM shards s
JOIN pg_stat_activity a ON a.pid = s.backend_pid AND a.backend_start = s.backend_start
WHERE s.id = %(shard)s AND s.state = 'running' AND s.slot = %(slot)s AND a.pid <> pg_backend_pid()

-- name: claim
-- A live lease of another slot is left alone, an expired one is the reaper's; the slot's own is superseded at once.
-- The job's row is locked, so that no shard is claimed of a job that is paused or stopped in this very moment; where
-- somebody changes the job just now, the shard is left, and sent again.
WITH job AS MATERIALIZED (
    SELECT j.id, j.uri, c.id AS collection, c.dim, c.chunk_tokens, c.chunk_overlap
    FROM jobs j
    JOIN collections c ON c.id = j.collection_id AND c.model_revision = %(model_revision)s
    WHERE j.id = (SELECT job_id FROM shards WHERE id = %(shard)s) AND j.state = 'running' AND j.planned AND NOT j.paused
    FOR SHARE OF j SKIP LOCKED
)
UPDATE shards s
SET state = 'running', attempt = s.attempt + 1, fence = s.fence + 1, slot = %(slot)s,
    lease_until = now() + make_interval(secs => %(lease)s), started_at = now(),
    backend_pid = pg_backend_pid(),
    backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()),
    documents_done = 0, chunks = 0, tokens = 0, truncated_tokens = 0
FROM job j
WHERE s.id = %(shard)s AND s.job_id = j.id
  AND (s.state IN ('pending', 'queued') OR (s.state = 'running' AND s.slot = %(slot)s))
RETURNING s.id, s.job_id::text, s.fence, s.attempt, s.documents, s.bytes, j.uri, j.collection, j.dim, j.chunk_tokens,
          j.chunk_overlap

-- name: state
SELECT state, slot, job_id::text, fence FROM shards WHERE id = %(shard)s

-- name: sources
SELECT jd.document_id, jd.uri, d.content_hash, jd.size, d.chunks
FROM job_documents jd
JOIN documents d ON d.id = jd.document_id
WHERE jd.shard_id = %(shard)s AND jd.outcome IS NULL
ORDER BY jd.document_id

-- name: renew
UPDATE shards
SET lease_until = now() + make_interval(secs => %(lease)s), documents_done = %(documents_done)s,
    chunks = %(chunks)s, tokens = %(tokens)s, truncated_tokens = %(truncated_tokens)s
WHERE id = %(shard)s AND fence = %(fence)s AND state = 'running'

-- name: make_rows
CREATE TEMPORARY TABLE shard_rows (
    document_id bigint NOT NULL, ordinal integer NOT NULL, text text NOT NULL, place text,
    token_count integer NOT NULL, embedding halfvec NOT NULL
) ON COMMIT DROP

-- name: make_finished
CREATE TEMPORARY TABLE shard_finished (
    document_id bigint PRIMARY KEY, outcome text NOT NULL, error text, content_hash bytea, chunks integer NOT NULL,
    tokens bigint NOT NULL, truncated_tokens bigint NOT NULL
) ON COMMIT DROP

-- name: delete_chunks
DELETE FROM {chunks} c USING shard_finished f
WHERE c.document_id = f.document_id AND f.outcome = 'embedded'

-- name: insert_chunks
INSERT INTO {chunks} (document_id, ordinal, text, place, token_count, embedding)
SELECT r.document_id, r.ordinal, r.text, r.place, r.token_count, r.embedding
FROM shard_rows r
JOIN shard_finished f ON f.document_id = r.document_id AND f.outcome = 'embedded'

-- name: update_documents
-- Embedded and skipped documents are now as the listing saw them. What failed keeps its old chunks, marked stale,
-- and its old version, so that the next job plans it again.
UPDATE documents d
SET size = CASE WHEN f.outcome = 'failed' THEN d.size ELSE jd.size END,
    version = CASE WHEN f.outcome = 'failed' THEN d.version ELSE jd.version END,
    content_hash = CASE WHEN f.outcome = 'failed' THEN d.content_hash ELSE f.content_hash END,
    state = CASE WHEN f.outcome = 'failed' AND d.state <> 'embedded' THEN 'failed' ELSE 'embedded' END,
    chunks = CASE WHEN f.outcome = 'embedded' THEN f.chunks ELSE d.chunks END,
    tokens = CASE WHEN f.outcome = 'embedded' THEN f.tokens ELSE d.tokens END,
    truncated_tokens = CASE WHEN f.outcome = 'embedded' THEN f.truncated_tokens ELSE d.truncated_tokens END,
    stale = f.outcome = 'failed' AND d.state = 'embedded',
    error = f.error,
    updated_at = now()
FROM shard_finished f
JOIN job_documents jd ON jd.job_id = %(job)s AND jd.document_id = f.document_id
WHERE d.id = f.document_id

-- name: update_job_documents
UPDATE job_documents jd SET outcome = f.outcome, error = f.error
FROM shard_finished f
WHERE jd.job_id = %(job)s AND jd.document_id = f.document_id AND jd.shard_id = %(shard)s

-- name: done
-- The last statement of a shard: whoever lost the fence rolls everything back. now() would be its beginning.
UPDATE shards
SET state = 'done', finished_at = clock_timestamp(), lease_until = NULL, error = NULL, documents_done = %(documents_done)s,
    chunks = %(chunks)s, tokens = %(tokens)s, truncated_tokens = %(truncated_tokens)s, skipped = %(skipped)s,
    waits = %(waits)s
WHERE id = %(shard)s AND fence = %(fence)s AND state = 'running'

-- name: give_back
UPDATE shards SET state = 'pending', lease_until = NULL, fence = fence + 1, error = coalesce(%(reason)s, error)
WHERE id = %(shard)s AND fence = %(fence)s AND state = 'running'

-- name: crashed
UPDATE shards SET state = 'pending', lease_until = NULL, fence = fence + 1, crashes = crashes + 1, error = %(reason)s
WHERE id = %(shard)s AND fence = %(fence)s AND state = 'running'
RETURNING job_id::text, documents, crashes

-- name: set_apart
-- A shard of its own for one document that was in flight when its worker crashed.
WITH made AS (
    INSERT INTO shards (job_id, number, documents, bytes, crashes, error)
    SELECT jd.job_id, (SELECT max(number) + 1 FROM shards WHERE job_id = jd.job_id), 1, coalesce(jd.size, 0),
           %(crashes)s, %(reason)s
    FROM job_documents jd
    WHERE jd.shard_id = %(shard)s AND jd.document_id = %(document)s AND jd.outcome IS NULL
    RETURNING id
)
UPDATE job_documents jd SET shard_id = made.id FROM made
WHERE jd.shard_id = %(shard)s AND jd.document_id = %(document)s

-- name: shrink
-- The rest of a shard whose documents in flight were set apart; nothing left is nothing to do.
UPDATE shards s
SET documents = r.documents, bytes = r.bytes, crashes = 0,
    state = CASE WHEN r.documents = 0 THEN 'done' ELSE s.state END,
    finished_at = CASE WHEN r.documents = 0 THEN now() END
FROM (SELECT count(*) AS documents, coalesce(sum(size), 0) AS bytes
      FROM job_documents WHERE shard_id = %(shard)s AND outcome IS NULL) r
WHERE s.id = %(shard)s AND s.state = 'pending'

-- name: fail
UPDATE shards SET state = 'failed', finished_at = now(), error = %(reason)s
WHERE id = %(shard)s AND state = 'pending'

-- name: fail_documents
WITH failed AS (
    UPDATE job_documents SET outcome = 'failed', error = %(reason)s
    WHERE shard_id = %(shard)s AND outcome IS NULL
    RETURNING document_id
)
UPDATE documents d
SET state = CASE WHEN d.state = 'embedded' THEN 'embedded' ELSE 'failed' END, stale = d.state = 'embedded',
    error = %(reason)s, updated_at = now()
FROM failed f WHERE d.id = f.document_id
