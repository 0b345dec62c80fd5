-- name: of_job
WITH work AS (
    -- A shard that went back, failed or was cancelled keeps the numbers of its last renewal: nothing of it was kept.
    SELECT coalesce(sum(chunks) FILTER (WHERE state IN ('running', 'done')), 0)::bigint AS chunks,
           coalesce(sum(tokens) FILTER (WHERE state IN ('running', 'done')), 0)::bigint AS tokens,
           coalesce(sum(truncated_tokens) FILTER (WHERE state IN ('running', 'done')), 0)::bigint AS truncated_tokens,
           -- Of shards that run: their documents have no outcome before the shard's one transaction.
           coalesce(sum(documents_done) FILTER (WHERE state = 'running'), 0)::bigint AS running_done,
           count(*) FILTER (WHERE state = 'running') AS running,
           -- Of its last run alone, where a job is tried again.
           min(started_at) FILTER (WHERE started_at >= this.began) AS began,
           coalesce(sum(tokens) FILTER (WHERE state = 'done' AND started_at >= this.began), 0)::bigint AS run_tokens,
           -- Seconds that slots spent on shards, and the share of each shard's bytes that is through.
           coalesce(sum(extract(epoch FROM coalesce(finished_at, now()) - started_at))
                    FILTER (WHERE state IN ('running', 'done')), 0)::float8 AS slot_seconds,
           coalesce(sum(CASE state WHEN 'done' THEN bytes
                                   WHEN 'running' THEN bytes * documents_done / greatest(documents, 1) END),
                    0)::float8 AS bytes_done,
           coalesce(sum(bytes) FILTER (WHERE state IN ('pending', 'queued', 'running', 'done')),
                    0)::float8 AS bytes_all
    FROM shards, (SELECT coalesce(started_at, '-infinity') AS began FROM jobs WHERE id = %(job)s) this
    WHERE job_id = %(job)s
), rate AS (
    SELECT CASE WHEN slot_seconds > 0 THEN tokens / slot_seconds ELSE 0 END AS tokens_each,
           CASE WHEN slot_seconds > 0 THEN bytes_done / slot_seconds ELSE 0 END AS bytes_each
    FROM work
)
SELECT j.state,
       d.total AS documents_total,
       least(d.done + w.running_done, d.total) AS documents_done,
       d.failed, d.skipped, d.removed,
       w.chunks, w.tokens, w.truncated_tokens,
       CASE WHEN j.finished_at IS NULL THEN r.tokens_each * w.running
            ELSE w.run_tokens / greatest(extract(epoch FROM j.finished_at - coalesce(w.began, j.finished_at)), 0.001)::float8
       END AS tokens_per_second,
       CASE WHEN j.state = 'running' AND r.bytes_each > 0 AND w.running > 0
            THEN (w.bytes_all - w.bytes_done) / (r.bytes_each * w.running) END AS seconds_left,
       j.error,
       j.paused AND j.finished_at IS NULL AS paused
FROM jobs j
JOIN job_counts d ON d.job_id = j.id, work w, rate r
WHERE j.id = %(job)s
