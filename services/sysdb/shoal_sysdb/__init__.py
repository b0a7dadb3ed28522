"""sysdb: tenants, databases, collections, their versions and the leases of background jobs, kept in Postgres."""

from __future__ import annotations

from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.functions import FunctionsService
from shoal_sysdb.migrate import migrate
from shoal_sysdb.store import PostgresCatalogStore

__all__ = ["CatalogService", "FunctionsService", "PostgresCatalogStore", "migrate"]
