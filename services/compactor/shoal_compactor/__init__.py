"""compactor: turns tails into segments, merges segments, publishes versions."""
