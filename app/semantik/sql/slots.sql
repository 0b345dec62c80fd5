-- name: beat
INSERT INTO slots (slot, state, processes, trouble, device, gpu_uuid, model, model_revision, release, bytes_per_second,
                   tokens_per_second)
VALUES (%(slot)s, %(state)s, %(processes)s, %(trouble)s, %(device)s, %(gpu_uuid)s, %(model)s, %(model_revision)s,
        %(release)s, %(bytes_per_second)s, %(tokens_per_second)s)
ON CONFLICT (slot) DO UPDATE
SET state = excluded.state, processes = excluded.processes, trouble = excluded.trouble, device = excluded.device,
    gpu_uuid = excluded.gpu_uuid, model = excluded.model, model_revision = excluded.model_revision,
    release = excluded.release,
    -- A worker that has just started has measured nothing yet; what the slot did before still holds.
    bytes_per_second = coalesce(excluded.bytes_per_second, slots.bytes_per_second),
    tokens_per_second = coalesce(excluded.tokens_per_second, slots.tokens_per_second),
    last_seen = now()

-- name: heartbeat
INSERT INTO heartbeats (name, host) VALUES (%(name)s, %(host)s)
ON CONFLICT (name) DO UPDATE SET host = excluded.host, last_seen = now()
