"""Fixtures for every test of the workspace: real servers, started once for each worker of a run, and fresh databases and buckets on them."""

pytest_plugins = ["shoal_testing.processes", "shoal_testing.spans"]
