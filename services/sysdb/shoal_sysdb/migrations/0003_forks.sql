-- A tenant's second name, given once; `resource_name:database:collection` names a collection. A tenant goes with a reset only,
-- and its row stays, as its deleted databases name it.
ALTER TABLE tenant ADD COLUMN resource_name text UNIQUE;
ALTER TABLE tenant ADD COLUMN deleted_at timestamptz;

-- From the root of its tree to the collection it was forked from. Its versions may name objects of any of them.
ALTER TABLE collection ADD COLUMN ancestors uuid[] NOT NULL DEFAULT '{}';
CREATE INDEX collection_ancestors ON collection USING gin (ancestors) WHERE ancestors <> '{}';

-- Entries of forks name the payloads of the log they were copied from: who else names an object is asked before it goes.
CREATE INDEX log_entry_object ON log_entry (object_key text_pattern_ops) WHERE object_key IS NOT NULL;
