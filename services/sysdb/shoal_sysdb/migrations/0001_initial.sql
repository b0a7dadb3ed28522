-- Catalog -------------------------------------------------------------------------------------------------------------

CREATE TABLE tenant (
    name       text PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE database (
    id         uuid PRIMARY KEY,
    tenant     text NOT NULL REFERENCES tenant (name),
    name       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz -- its deleted collections still name it
);

CREATE UNIQUE INDEX database_name ON database (tenant, name) WHERE deleted_at IS NULL;

INSERT INTO tenant (name) VALUES ('default_tenant');
INSERT INTO database (id, tenant, name) VALUES (gen_random_uuid(), 'default_tenant', 'default_database');

CREATE TABLE collection (
    id            uuid PRIMARY KEY,
    database_id   uuid NOT NULL REFERENCES database (id) ON DELETE NO ACTION,
    tenant        text NOT NULL,
    database_name text NOT NULL,
    name          text NOT NULL,
    epoch         bigint NOT NULL DEFAULT 1,
    incarnation   uuid NOT NULL,
    dimension     integer,
    space         text NOT NULL,
    shards        integer NOT NULL CHECK (shards > 0),
    metadata      json, -- not jsonb: it comes back as it was, key order and 1e22 as a float included
    configuration json NOT NULL,
    version       bigint NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at    timestamptz
);

CREATE UNIQUE INDEX collection_name ON collection (database_id, name) WHERE deleted_at IS NULL;
CREATE INDEX collection_order ON collection (database_id, created_at, id) WHERE deleted_at IS NULL;

-- The compacted offset lives here and nowhere else. Version 0 has no row.
CREATE TABLE collection_version (
    collection_id    uuid NOT NULL REFERENCES collection (id),
    version          bigint NOT NULL,
    manifest_key     text NOT NULL,
    compacted_offset bigint NOT NULL,
    compacted_bytes  bigint NOT NULL, -- log_head.total_bytes as it was at compacted_offset
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (collection_id, version)
);

CREATE TABLE lease (
    collection_id uuid NOT NULL REFERENCES collection (id),
    kind          text NOT NULL,
    holder        text NOT NULL,
    epoch         bigint NOT NULL,
    expires_at    timestamptz NOT NULL, -- -infinity once released
    PRIMARY KEY (collection_id, kind)
);

-- An object is uploaded under an intent; whoever names it in a transaction refuses an intent that is too old, and the sweeper
-- waits twice as long, so no object is swept that may still be named.
CREATE TABLE upload_intent (
    id            uuid PRIMARY KEY,
    collection_id uuid NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Log -----------------------------------------------------------------------------------------------------------------

CREATE TABLE log_head (
    collection_id uuid PRIMARY KEY REFERENCES collection (id),
    head_offset   bigint NOT NULL DEFAULT 0,
    total_bytes   bigint NOT NULL DEFAULT 0,
    set_hash      bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    trim_floor    bigint NOT NULL DEFAULT 0, -- entries with end_offset <= trim_floor may be gone
    uncompacted_since timestamptz          -- when the oldest un-compacted entry came; null when all is compacted
) WITH (fillfactor = 50);

-- Appends to a collection that is already dirty stay heap-only updates.
CREATE INDEX log_head_dirty ON log_head (uncompacted_since) WHERE uncompacted_since IS NOT NULL;

-- Trimmed by dropping partitions. total_bytes and set_hash are cumulative, this entry included.
CREATE TABLE log_entry (
    collection_id uuid NOT NULL,
    first_offset  bigint NOT NULL,
    end_offset    bigint NOT NULL,
    committed_at  timestamptz NOT NULL,
    payload       bytea,          -- null when the payload is an object
    object_key    text,
    size_bytes    bigint NOT NULL,
    checksum      bytea NOT NULL, -- xxh3-128 of the payload
    id_hashes     bytea NOT NULL, -- sorted little-endian uint64, for conditional writes
    total_bytes   bigint NOT NULL,
    set_hash      bytea NOT NULL,
    CHECK ((payload IS NULL) <> (object_key IS NULL)),
    CHECK (first_offset <= end_offset)
) PARTITION BY RANGE (committed_at);

CREATE INDEX log_entry_order ON log_entry (collection_id, end_offset);
ALTER TABLE log_entry ALTER COLUMN payload SET STORAGE EXTERNAL; -- float vectors do not compress
ALTER TABLE log_entry ALTER COLUMN id_hashes SET STORAGE EXTERNAL;

CREATE TABLE idempotency (
    tenant        text NOT NULL,
    collection_id uuid NOT NULL,
    key           text NOT NULL,
    digest        bytea NOT NULL,
    first_offset  bigint NOT NULL,
    end_offset    bigint NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, collection_id, key)
);
CREATE INDEX idempotency_age ON idempotency (created_at);
