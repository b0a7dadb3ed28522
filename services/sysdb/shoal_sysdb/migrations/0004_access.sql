-- Credentials. Never a secret: of a token the SHA-256 of its random secret, of a user a salted scrypt.
CREATE TABLE credential (
    kind       text NOT NULL CHECK (kind IN ('token', 'user')),
    id         text NOT NULL COLLATE "C", -- listed in order of bytes
    label      text NOT NULL,
    grants     json NOT NULL, -- [[role, tenant, database, collection], …]
    verifier   bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz, -- null: never
    revoked_at timestamptz, -- the row stays, so that an id never comes back with other rights
    PRIMARY KEY (kind, id)
);

CREATE INDEX credential_order ON credential (id, kind);
