"""Fakes of the contracts: one import for tests."""

from __future__ import annotations

from shoal_testing.fake_access import MemoryAccess
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT, MemoryCatalog
from shoal_testing.fake_functions import MemoryFunctions
from shoal_testing.fake_log import MemoryLog

__all__ = ["DEFAULT_DATABASE", "DEFAULT_TENANT", "MemoryAccess", "MemoryCatalog", "MemoryFunctions", "MemoryLog"]
