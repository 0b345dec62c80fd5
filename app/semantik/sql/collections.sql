-- name: listing
SELECT c.id, c.name, c.model, c.model_revision, c.dim, c.chunk_tokens, c.chunk_overlap, c.index_state, c.created_at,
       count(d.id) FILTER (WHERE d.state <> 'pending') AS documents,
       count(d.id) FILTER (WHERE d.state = 'failed') AS failed,
       count(d.id) FILTER (WHERE d.stale) AS stale,
       coalesce(sum(d.chunks), 0)::bigint AS chunks,
       coalesce(sum(d.tokens), 0)::bigint AS tokens
FROM collections c
LEFT JOIN documents d ON d.collection_id = c.id
WHERE %(name)s::text IS NULL OR c.name = %(name)s
GROUP BY c.id
ORDER BY c.name
