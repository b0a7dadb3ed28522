"""frontend: the public API. Validation, planning, fan-out, merge."""
