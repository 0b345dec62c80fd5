-- name: collection
SELECT id, model, model_revision, dim, index_state FROM collections WHERE name = %(name)s

-- name: nearest
-- The inner query is what an HNSW index can answer: an order and a limit, nothing else.
SELECT 1 - nearest.distance AS score, documents.uri, coalesce(nearest.place, '') AS place, nearest.ordinal,
       nearest.text
FROM (
    SELECT document_id, place, ordinal, text, embedding <=> %(question)s::halfvec AS distance
    FROM {chunks}
    ORDER BY embedding <=> %(question)s::halfvec
    LIMIT %(limit)s
) AS nearest
JOIN documents ON documents.id = nearest.document_id
ORDER BY nearest.distance, nearest.ordinal
