"""The core protocols over a channel.

Each client takes a channel, or a function that returns the channel to use, and a timeout that becomes every call's
deadline. Each raises `shoal_core.errors` only; a write whose outcome cannot be known raises `OutcomeUnknown`.
"""

from shoal_wire.clients.access import AccessAdminClient, AccessClient
from shoal_wire.clients.catalog import CatalogClient
from shoal_wire.clients.functions import FunctionsClient
from shoal_wire.clients.log import LogClient
from shoal_wire.clients.public import PublicClient
from shoal_wire.clients.query import QueryClient

__all__ = [
    "AccessAdminClient",
    "AccessClient",
    "CatalogClient",
    "FunctionsClient",
    "LogClient",
    "PublicClient",
    "QueryClient",
]
