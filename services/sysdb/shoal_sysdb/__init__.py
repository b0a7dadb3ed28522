"""sysdb: tenants, databases, collections, their versions, the leases of background jobs and credentials, kept in Postgres."""

from __future__ import annotations

from shoal_sysdb.access import AccessService
from shoal_sysdb.catalog import CatalogService
from shoal_sysdb.functions import FunctionsService
from shoal_sysdb.migrate import migrate, require_schema
from shoal_sysdb.store import PostgresCatalogStore

__all__ = ["AccessService", "CatalogService", "FunctionsService", "PostgresCatalogStore", "migrate", "require_schema"]
