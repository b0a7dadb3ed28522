"""Immutable objects by key: implementations of `shoal_core.ports.ObjectStore`.

`S3ObjectStore` for a cluster, `LocalObjectStore` for one machine; `shoal_testing.memory_objects` has the one for tests.
"""

from __future__ import annotations

from shoal_storage.local_objects import LocalObjectStore
from shoal_storage.object_rules import check_key, check_prefix
from shoal_storage.s3_objects import S3Config, S3ObjectStore, ensure_bucket

__all__ = ["LocalObjectStore", "S3Config", "S3ObjectStore", "check_key", "check_prefix", "ensure_bucket"]
