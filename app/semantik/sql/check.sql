-- name: vector_version
SELECT extversion FROM pg_extension WHERE extname = 'vector'

-- name: applied
SELECT name FROM migrations ORDER BY name

-- name: heartbeats
SELECT name, host, extract(epoch FROM now() - last_seen)::float8 AS age FROM heartbeats

-- name: slots
SELECT slot, state, coalesce(device, '') AS device, coalesce(gpu_uuid, '') AS gpu_uuid, coalesce(model, '') AS model,
       coalesce(model_revision, '') AS model_revision, coalesce(release, '') AS release,
       coalesce(trouble, '') AS trouble, extract(epoch FROM now() - last_seen)::float8 AS age
FROM slots
ORDER BY slot

-- name: working
SELECT count(*) FROM slots WHERE state IN ('idle', 'busy') AND last_seen > now() - %(seconds)s * interval '1 s'
