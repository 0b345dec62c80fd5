-- The record of truth. Every transition elsewhere is one statement guarded by state and fence, on this
-- database's clock. Applied once, by the owner role, inside one transaction together with its row in `migrations`.

CREATE TABLE collections (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    model          text NOT NULL,
    model_revision text NOT NULL,
    -- halfvec's HNSW indexes end at 4,000 dimensions; larger models are refused when a collection is made.
    dim            integer NOT NULL CHECK (dim BETWEEN 1 AND 4000),
    chunk_tokens   integer NOT NULL CHECK (chunk_tokens >= 0),  -- 0: the model's limit
    chunk_overlap  integer NOT NULL CHECK (chunk_overlap >= 0),
    index_state    text NOT NULL DEFAULT 'none' CHECK (index_state IN ('none', 'building', 'ready')),
    created_at     timestamptz NOT NULL DEFAULT now(),
    CHECK (chunk_tokens = 0 OR chunk_overlap < chunk_tokens)
);

-- The collection's state: one row per document it has seen and not removed.
CREATE TABLE documents (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection_id    bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
    -- Bytewise order, so that everything under a root is one range of the index.
    uri              text COLLATE "C" NOT NULL,
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
    UNIQUE (collection_id, uri),
    CHECK (state = 'embedded' OR chunks = 0),
    CHECK (NOT stale OR state = 'embedded')
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
    lease_until   timestamptz,                     -- of the planner, while it plans
    planner       text,                            -- its Celery node name
    backend_pid   integer,                         -- the database session that plans
    backend_start timestamptz,
    plan_attempts integer NOT NULL DEFAULT 0,
    listed        bigint NOT NULL DEFAULT 0,       -- documents under the URI
    unchanged     bigint NOT NULL DEFAULT 0,       -- of them, not planned again
    error         text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,
    finished_at   timestamptz,
    reported_at   timestamptz,                     -- final Celery result stored and event sent
    sent_at       timestamptz,                     -- last time its planning message was sent
    CHECK ((state IN ('completed', 'completed_with_errors', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK (state NOT IN ('running', 'completed', 'completed_with_errors') OR planned),
    CHECK (state NOT IN ('queued', 'planning') OR NOT planned),
    CHECK (lease_until IS NULL OR state = 'planning')
);
-- One active job per collection; later ones wait in 'queued'.
CREATE UNIQUE INDEX jobs_one_active_per_collection ON jobs (collection_id) WHERE state IN ('planning', 'running');
CREATE INDEX jobs_unfinished ON jobs (created_at) WHERE finished_at IS NULL;
CREATE INDEX jobs_unreported ON jobs (finished_at) WHERE reported_at IS NULL;

CREATE TABLE shards (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id           uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    number           integer NOT NULL,             -- within the job, from 1
    state            text NOT NULL DEFAULT 'pending' CHECK (state IN
                     ('pending', 'queued', 'running', 'done', 'failed', 'cancelled')),
    documents        integer NOT NULL,
    bytes            bigint NOT NULL,
    attempt          integer NOT NULL DEFAULT 0,
    crashes          integer NOT NULL DEFAULT 0,   -- the worker's process died while it held the shard
    expiries         integer NOT NULL DEFAULT 0,   -- the lease ran out: power, network
    fence            bigint NOT NULL DEFAULT 0,
    lease_until      timestamptz,
    slot             text,                         -- that holds it, or held it last
    backend_pid      integer,                      -- the database session of the last claim
    backend_start    timestamptz,
    queued_at        timestamptz,                  -- last time its message was sent
    started_at       timestamptz,                  -- of the last claim
    finished_at      timestamptz,
    documents_done   integer NOT NULL DEFAULT 0,   -- progress, carried by each renewal
    chunks           integer NOT NULL DEFAULT 0,
    tokens           bigint NOT NULL DEFAULT 0,
    truncated_tokens bigint NOT NULL DEFAULT 0,
    waits            jsonb,                        -- seconds each stage waited for another
    error            text,
    CHECK ((state = 'running') = (lease_until IS NOT NULL)),
    CHECK ((state IN ('done', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK (state <> 'running' OR slot IS NOT NULL)
);
CREATE INDEX shards_job ON shards (job_id);
CREATE INDEX shards_open ON shards (job_id, id) WHERE state IN ('pending', 'queued', 'running');

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
    PRIMARY KEY (job_id, document_id),
    CHECK (shard_id IS NOT NULL OR outcome IS NOT NULL),
    CHECK (outcome <> 'failed' OR error IS NOT NULL)
);
CREATE INDEX job_documents_shard ON job_documents (shard_id);
CREATE INDEX job_documents_failed ON job_documents (job_id) WHERE outcome = 'failed';

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

-- The planner's and the scheduler's sign of life.
CREATE TABLE heartbeats (
    name      text PRIMARY KEY,
    host      text NOT NULL,
    last_seen timestamptz NOT NULL DEFAULT now()
);

-- The definer functions below are the only way to make, drop or index a table of chunks: no service role may run
-- DDL. Their search_path is pinned, so that nobody's own objects are found before the schema's.

-- A collection and its table of chunks. `storage` is external for vectors: they do not compress.
CREATE FUNCTION create_collection(
    p_name text, p_model text, p_model_revision text, p_dim integer, p_chunk_tokens integer, p_chunk_overlap integer
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = semantik, public, pg_temp AS $$
DECLARE
    new_id bigint;
BEGIN
    INSERT INTO collections (name, model, model_revision, dim, chunk_tokens, chunk_overlap)
    VALUES (p_name, p_model, p_model_revision, p_dim, p_chunk_tokens, p_chunk_overlap)
    RETURNING id INTO new_id;
    EXECUTE format($ddl$
        CREATE TABLE semantik.chunks_%1$s (
            document_id bigint NOT NULL,
            ordinal     integer NOT NULL,
            text        text NOT NULL,
            place       text,
            token_count integer NOT NULL,
            embedding   halfvec(%2$s) NOT NULL,
            PRIMARY KEY (document_id, ordinal)
        )$ddl$, new_id, p_dim);
    EXECUTE format('ALTER TABLE semantik.chunks_%1$s ALTER COLUMN embedding SET STORAGE EXTERNAL', new_id);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON semantik.chunks_%1$s TO semantik_worker', new_id);
    EXECUTE format('GRANT SELECT, DELETE ON semantik.chunks_%1$s TO semantik_planner', new_id);
    EXECUTE format('GRANT SELECT ON semantik.chunks_%1$s TO semantik_operator, semantik_scheduler', new_id);
    RETURN new_id;
END $$;

-- Its documents and jobs go with it; refused (false) while a job of it is active.
CREATE FUNCTION drop_collection(p_id bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = semantik, public, pg_temp AS $$
BEGIN
    PERFORM FROM collections WHERE id = p_id FOR UPDATE;
    IF EXISTS (SELECT FROM jobs WHERE collection_id = p_id AND finished_at IS NULL) THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS semantik.chunks_%1$s', p_id);
    DELETE FROM collections WHERE id = p_id;
    RETURN true;
END $$;

-- The HNSW index of a collection, once. Blocks writes to its chunks while it builds.
CREATE FUNCTION ensure_index(p_id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = semantik, public, pg_temp AS $$
BEGIN
    -- A build that outlived its scheduler is waited for, not doubled.
    PERFORM pg_advisory_xact_lock(hashtext('semantik index'), p_id::integer);
    IF (SELECT string_to_array(extversion, '.')::integer[] FROM pg_extension WHERE extname = 'vector')
       < ARRAY[0, 8, 2] THEN
        -- Parallel builds overflow a buffer below 0.8.2 (CVE-2026-3172).
        PERFORM set_config('max_parallel_maintenance_workers', '0', true);
    END IF;
    EXECUTE format('CREATE INDEX IF NOT EXISTS chunks_%1$s_embedding ON semantik.chunks_%1$s '
                   'USING hnsw (embedding halfvec_cosine_ops)', p_id);
    UPDATE collections SET index_state = 'ready' WHERE id = p_id;
END $$;

-- Least privilege: each service may do what its part of a job's life needs, and nothing else.
REVOKE ALL ON FUNCTION create_collection, drop_collection, ensure_index FROM PUBLIC;
GRANT USAGE ON SCHEMA semantik TO semantik_planner, semantik_scheduler, semantik_worker, semantik_operator;
GRANT SELECT ON ALL TABLES IN SCHEMA semantik
    TO semantik_planner, semantik_scheduler, semantik_worker, semantik_operator;

GRANT UPDATE ON jobs TO semantik_planner, semantik_scheduler, semantik_operator;
GRANT UPDATE (state, finished_at, error) ON jobs TO semantik_worker;
GRANT INSERT ON jobs TO semantik_operator;
GRANT DELETE ON jobs TO semantik_scheduler;

GRANT INSERT, UPDATE, DELETE ON documents TO semantik_planner;
GRANT UPDATE, DELETE ON documents TO semantik_worker;
GRANT UPDATE ON documents TO semantik_scheduler;

GRANT INSERT ON shards TO semantik_planner, semantik_worker;
GRANT UPDATE ON shards TO semantik_scheduler, semantik_worker, semantik_operator;

GRANT INSERT ON job_documents TO semantik_planner;
GRANT UPDATE ON job_documents TO semantik_scheduler, semantik_worker;

GRANT UPDATE (index_state) ON collections TO semantik_scheduler;
GRANT EXECUTE ON FUNCTION create_collection, drop_collection TO semantik_operator;
GRANT EXECUTE ON FUNCTION ensure_index TO semantik_scheduler;

GRANT INSERT, UPDATE ON slots TO semantik_worker;
GRANT DELETE ON slots TO semantik_scheduler;
GRANT INSERT, UPDATE ON heartbeats TO semantik_planner, semantik_scheduler;
