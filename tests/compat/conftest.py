"""What runs in the clients' own environment is not for the project's: `tests/integration/test_published_clients.py` starts it."""

collect_ignore = ["clients", "javascript"]
