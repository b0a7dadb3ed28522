"""Fixtures for every test of the workspace: real servers, started once for a run (for each of its workers), and fresh databases and buckets on them."""

pytest_plugins = ["shoal_testing.processes", "shoal_testing.spans"]
