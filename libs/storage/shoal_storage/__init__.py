"""Objects, blocks and their cache."""
