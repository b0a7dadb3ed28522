"""Fixtures for every test of the workspace: real servers, once for each worker of a run, fresh databases and buckets on them."""

pytest_plugins = ["shoal_testing.processes", "shoal_testing.spans"]
