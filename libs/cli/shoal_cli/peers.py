"""What every role of a cluster shares: the registry, the channels to other members, and the routed contracts over them."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_cli.security import PLAIN, Security
from shoal_cluster.assignment import AssignmentPolicy, RendezvousPolicy, compaction_key
from shoal_cluster.calls import RetryPolicy
from shoal_cluster.channels import ChannelPool, ChannelSettings
from shoal_cluster.etcd.client import EtcdClient
from shoal_cluster.registry import EtcdRegistry
from shoal_cluster.routed_access import RoutedAccess
from shoal_cluster.routed_catalog import RoutedCatalog
from shoal_cluster.routed_functions import RoutedFunctions
from shoal_cluster.routing import RoutedLog, RoutedQueryNodes, Router, RoutingSettings
from shoal_core.contracts import Access, Catalog, Functions, Log, QueryNode
from shoal_core.errors import InvalidArgument
from shoal_core.ports import Member
from shoal_runtime.config import Config
from shoal_runtime.sections import settings_of
from shoal_runtime.system import SystemClock, SystemRandom
from shoal_runtime.tls import channel_credentials
from shoal_wire.clients.access import AccessClient
from shoal_wire.clients.catalog import CatalogClient
from shoal_wire.clients.functions import FunctionsClient
from shoal_wire.clients.log import LogClient
from shoal_wire.clients.query import QueryClient


@dataclass(frozen=True, slots=True)
class Peers:
    """The other members, as the services' contracts."""

    registry: EtcdRegistry
    channels: ChannelPool
    policy: AssignmentPolicy
    catalog: Catalog
    log: Log
    nodes: QueryNode
    access: Access
    functions: Functions

    async def start(self) -> None:
        """Begin to watch the registry."""
        self.registry.subscribe(self.channels.follow)
        await self.registry.start()

    async def close(self) -> None:
        """Withdraw from the registry and close all channels."""
        await self.registry.close()
        await self.channels.close()

    def is_mine(self, holder: str, collection_id: str) -> bool:
        """Whether the compactor ``holder`` is the preferred one for a collection."""
        members = self.registry.view().of("compactor")
        preferred = self.policy.assign(compaction_key(collection_id), members, 1)
        return not preferred or preferred[0].id == holder


def channel_settings(config: Config) -> ChannelSettings:
    """Both ends of every connection between members."""
    rpc = config.rpc
    return ChannelSettings(
        config.limits.message_size_bytes, rpc.keepalive_time_ms, rpc.keepalive_timeout_ms, rpc.max_reconnect_backoff_ms
    )


def find_peers(config: Config, security: Security = PLAIN) -> Peers:
    """Connect to nothing yet: everything opens at `Peers.start` or on first use."""
    if not config.etcd.endpoints:
        raise InvalidArgument("name at least one etcd server, host:port", field="etcd.endpoints")
    clock, random = SystemClock(), SystemRandom()
    etcd = EtcdClient(
        config.etcd.endpoints,
        credentials=None if security.etcd is None else channel_credentials(security.etcd),
        server_name=config.etcd.server_name,
    )
    registry = EtcdRegistry(etcd, config.etcd.cluster, clock=clock, random=random, lease_ttl_s=config.etcd.lease_ttl_s)
    channels = ChannelPool(
        channel_settings(config), clock=clock, security=security.members, close_grace_ms=config.rpc.close_grace_ms
    )
    security.follow(channels, etcd)
    policy = RendezvousPolicy()
    routing = RoutingSettings(
        timeout_ms=config.frontend.timeout_ms,
        attempt_timeout_ms=config.rpc.timeout_ms,
        replicas=config.frontend.replicas,
        hedge=config.frontend.hedge,
        hedge_percentile=config.frontend.hedge_percentile,
        hedge_min_ms=config.frontend.hedge_min_ms,
        retry=settings_of(RetryPolicy, config.rpc, max_attempts=RoutingSettings().retry.max_attempts),
    )
    timeout_ms = config.rpc.timeout_ms

    def catalog_of(member: Member) -> Catalog:
        return CatalogClient(channels.get(member.address, member.role), timeout_ms)

    def functions_of(member: Member) -> Functions:
        return FunctionsClient(channels.get(member.address, member.role), timeout_ms)

    def log_of(member: Member) -> Log:
        return LogClient(channels.get(member.address, member.role), timeout_ms)

    def node_of(member: Member) -> QueryNode:
        return QueryClient(channels.get(member.address, member.role), timeout_ms)

    def access_of(member: Member) -> Access:
        return AccessClient(channels.get(member.address, member.role), timeout_ms)

    return Peers(
        registry,
        channels,
        policy,
        RoutedCatalog(Router("sysdb", registry, policy, catalog_of, clock, random, routing)),
        RoutedLog(Router("logservice", registry, policy, log_of, clock, random, routing)),
        RoutedQueryNodes(Router("querynode", registry, policy, node_of, clock, random, routing)),
        RoutedAccess(Router("sysdb", registry, policy, access_of, clock, random, routing)),
        RoutedFunctions(Router("sysdb", registry, policy, functions_of, clock, random, routing)),
    )
