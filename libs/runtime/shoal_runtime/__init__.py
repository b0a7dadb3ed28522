"""Configuration, telemetry, servers and the real clock."""
