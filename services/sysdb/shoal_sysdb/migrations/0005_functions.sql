-- A function lives while both its collections do. Rows of dead ones go with the collection, or when the name is used again.
CREATE TABLE attached_function (
    id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name                 text NOT NULL,
    function             text NOT NULL,
    input_collection_id  uuid NOT NULL REFERENCES collection (id) ON DELETE CASCADE,
    output_collection_id uuid NOT NULL REFERENCES collection (id) ON DELETE CASCADE,
    params               json NOT NULL,
    completion_offset    bigint NOT NULL DEFAULT 0,
    failures             integer NOT NULL DEFAULT 0,
    last_error           text NOT NULL DEFAULT '',
    ran_at               timestamptz NOT NULL DEFAULT clock_timestamp(), -- or failed, or was attached
    retry_at             timestamptz,                                    -- null unless it failed
    UNIQUE (input_collection_id, name)
);

CREATE UNIQUE INDEX attached_function_output ON attached_function (output_collection_id);
