-- The record of truth. Every transition elsewhere is one statement guarded by state and fence, on this
-- database's clock. Applied once, by the owner role, inside one transaction together with its row in `migrations`.

CREATE TABLE collections (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    model          text NOT NULL,
    model_revision text NOT NULL,
    -- halfvec's HNSW indexes end at 4,000 dimensions; larger models are refused when a collection is made.
    dim            integer NOT NULL CHECK (dim BETWEEN 1 AND 4000),
    chunk_tokens   integer NOT NULL CHECK (chunk_tokens > 0),
    chunk_overlap  integer NOT NULL CHECK (chunk_overlap >= 0 AND chunk_overlap < chunk_tokens),
    index_state    text NOT NULL DEFAULT 'none' CHECK (index_state IN ('none', 'building', 'ready')),
    created_at     timestamptz NOT NULL DEFAULT now()
);

-- The collection's state: one row per document it has seen and not removed.
CREATE TABLE documents (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection_id    bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
    uri              text NOT NULL,
    -- What the listing said when the document was last embedded; NULL until then, so that it is planned again.
    size             bigint,
    version          text,          -- mtime in nanoseconds, or the store's ETag
    content_hash     bytea,         -- SHA-256 of the bytes that were parsed
    state            text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'embedded', 'failed')),
    chunks           integer NOT NULL DEFAULT 0,
    tokens           bigint NOT NULL DEFAULT 0,
    truncated_tokens bigint NOT NULL DEFAULT 0,
    stale            boolean NOT NULL DEFAULT false, -- chunks are of an older content than the source now has
    error            text,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (collection_id, uri)
);

CREATE TABLE jobs (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
    uri           text NOT NULL,
    state         text NOT NULL DEFAULT 'queued' CHECK (state IN
                  ('queued', 'planning', 'running', 'completed', 'completed_with_errors', 'failed', 'cancelled')),
    priority      smallint NOT NULL DEFAULT 0,
    allow_removal boolean NOT NULL DEFAULT false,
    submitted_by  text NOT NULL DEFAULT '',
    planned       boolean NOT NULL DEFAULT false,  -- set last: until then planning starts over
    fence         bigint NOT NULL DEFAULT 0,
    lease_until   timestamptz,
    planner       text,
    plan_attempts integer NOT NULL DEFAULT 0,
    listed        bigint NOT NULL DEFAULT 0,       -- documents under the URI
    unchanged     bigint NOT NULL DEFAULT 0,       -- of them, not planned again
    error         text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,
    finished_at   timestamptz,
    reported_at   timestamptz,                     -- final Celery result stored and event sent
    sent_at       timestamptz                      -- last time its planning message was sent
);
-- One active job per collection; later ones wait in 'queued'.
CREATE UNIQUE INDEX jobs_one_active_per_collection ON jobs (collection_id) WHERE state IN ('planning', 'running');
CREATE INDEX jobs_unfinished ON jobs (created_at) WHERE finished_at IS NULL;

CREATE TABLE shards (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id           uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    state            text NOT NULL DEFAULT 'pending' CHECK (state IN
                     ('pending', 'queued', 'running', 'done', 'failed', 'cancelled')),
    documents        integer NOT NULL,
    bytes            bigint NOT NULL,
    attempt          integer NOT NULL DEFAULT 0,
    crashes          integer NOT NULL DEFAULT 0,   -- the worker's process died while it held the shard
    expiries         integer NOT NULL DEFAULT 0,   -- the lease ran out: power, network
    fence            bigint NOT NULL DEFAULT 0,
    lease_until      timestamptz,
    slot             text,
    backend_pid      integer,
    backend_start    timestamptz,
    queued_at        timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    documents_done   integer NOT NULL DEFAULT 0,   -- progress, carried by each renewal
    chunks           integer NOT NULL DEFAULT 0,
    tokens           bigint NOT NULL DEFAULT 0,
    truncated_tokens bigint NOT NULL DEFAULT 0,
    waits            jsonb,                        -- seconds each stage waited for another
    error            text,
    CHECK ((state = 'running') = (lease_until IS NOT NULL)),
    CHECK (state <> 'running' OR slot IS NOT NULL)
);
CREATE INDEX shards_open ON shards (job_id, state) WHERE state IN ('pending', 'queued', 'running');

-- What a job did to each new, changed or removed document.
CREATE TABLE job_documents (
    job_id      uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    document_id bigint NOT NULL,                   -- no foreign key: a removed document's row goes, this stays
    uri         text NOT NULL,
    size        bigint,
    version     text,
    shard_id    bigint REFERENCES shards ON DELETE CASCADE,
    outcome     text CHECK (outcome IN ('embedded', 'skipped', 'failed', 'removed')),
    error       text,
    PRIMARY KEY (job_id, document_id)
);
CREATE INDEX job_documents_shard ON job_documents (shard_id);

CREATE TABLE slots (
    slot              text PRIMARY KEY,            -- host:n
    state             text NOT NULL CHECK (state IN ('starting', 'idle', 'busy', 'draining', 'stopped')),
    device            text,                        -- cpu, or cuda and the GPU's name
    gpu_uuid          text,
    model             text,
    model_revision    text,
    release           text,
    bytes_per_second  double precision,            -- of source documents, measured over recent shards
    tokens_per_second double precision,
    last_seen         timestamptz NOT NULL DEFAULT now()
);

-- The planner's and the scheduler's sign of life, and what the cluster embeds with.
CREATE TABLE heartbeats (
    name      text PRIMARY KEY,
    host      text NOT NULL,
    last_seen timestamptz NOT NULL DEFAULT now()
);
