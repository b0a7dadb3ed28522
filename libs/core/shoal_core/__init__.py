"""Types, semantics and seams of Shoal. Needs numpy and pyarrow, does no I/O."""
