-- What `Schema.to_json` says; `{}`: every index is on and text is analysed as by default.
ALTER TABLE collection ADD COLUMN schema json NOT NULL DEFAULT '{}';
