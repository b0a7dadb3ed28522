"""A real cluster on loopback: Postgres, etcd and an S3 server from installed packages, and every role as a process of its own.

All of it lives under one directory and dies with this process, however this process ends. A role that ends by itself is started again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from shoal_cli.directory import CLUSTER_OBJECTS, lock_directory
from shoal_cluster.etcd.client import EtcdClient
from shoal_cluster.registry import EtcdRegistry
from shoal_core.errors import NotFound, ShoalError, Unavailable
from shoal_core.ports import MembershipView
from shoal_runtime.lifecycle import Background
from shoal_runtime.servers.etcd import EtcdServer
from shoal_runtime.servers.ports import free_ports
from shoal_runtime.servers.postgres import PostgresServer
from shoal_runtime.servers.postgres_pair import PostgresPair
from shoal_runtime.servers.process import ServerCommand, ServerProcess
from shoal_runtime.servers.seaweedfs import SeaweedServer
from shoal_runtime.system import SystemClock, SystemRandom

_log = logging.getLogger(__name__)

CLUSTER = "local"
BUCKET = "shoal"
_READY_S = 90.0
_POLL_S = 0.1
_RESTART_S = 0.5
_LOG_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What to run.

    Attributes:
        grpc, http: host:port of the first frontend; the others take free ports. Without http none serves it.
        standby: Postgres has a synchronous standby; see `PostgresPair` for failing over to it.
        environment: more settings of every role, as ``SHOAL_SECTION__NAME``.
        certificates: a directory as `shoal_cli.certificates.make` fills it: TLS between the roles, and to their callers.
    """

    path: Path
    querynodes: int = 3
    frontends: int = 2
    logservices: int = 2
    compactors: int = 2
    sysdbs: int = 2
    grpc: str = "127.0.0.1:0"
    http: str = "127.0.0.1:0"
    standby: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    certificates: Path | None = None

    def counts(self) -> dict[str, int]:
        """How many processes of each role, in the order they are started."""
        return {
            "sysdb": self.sysdbs,
            "logservice": self.logservices,
            "querynode": self.querynodes,
            "compactor": self.compactors,
            "frontend": self.frontends,
        }


@dataclass(slots=True)
class RoleProcess:
    """One role's process."""

    name: str
    role: str
    address: str
    metrics: str
    http: str
    command: ServerCommand
    process: ServerProcess

    @property
    def pid(self) -> int:
        """Process id; 0 if it does not run."""
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, as a fault would."""
        self.process.kill()


class LocalCluster:
    """See the module. `start`, then use `frontends`; `stop` at the end."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self._path = plan.path.absolute()
        self._stack = AsyncExitStack()
        self._supervision = Background()
        self.postgres: PostgresServer | PostgresPair = (
            PostgresPair(self._path / "postgres-pair") if plan.standby else PostgresServer(self._path / "postgres")
        )
        self.etcd = EtcdServer(self._path / "etcd")
        self.s3 = SeaweedServer(self._path / CLUSTER_OBJECTS)
        self.roles: dict[str, RoleProcess] = {}
        self.registry: EtcdRegistry

    @property
    def frontends(self) -> list[str]:
        """gRPC addresses of the frontends."""
        return [role.address for role in self.roles.values() if role.role == "frontend"]

    async def start(self) -> None:
        """Start the servers, then the roles; returns when every role is registered.

        Raises as `lock_directory` does, and `Unavailable` with the end of a log when something does not come up.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Drain and stop the roles, then the servers."""
        await self._supervision.close()  # first, or it would start again what stops
        await asyncio.gather(*(role.process.stop() for role in self.roles.values()))
        await self._stack.aclose()

    async def restart_servers(self) -> None:
        """Start Postgres, etcd and the S3 server again after they were killed."""
        await asyncio.gather(self.postgres.start(), self.etcd.start(), self.s3.start())

    async def wait_for_members(self, timeout_s: float = _READY_S) -> MembershipView:
        """Return when every role's process is in the registry.

        Raises `Unavailable` naming those that are not.
        """
        for _ in range(int(timeout_s / _POLL_S)):
            view = self.registry.view()
            present = {member.address for members in view.members.values() for member in members}
            missing = [role for role in self.roles.values() if role.address not in present]
            if not missing:
                return view
            await asyncio.sleep(_POLL_S)
        names = ", ".join(role.name for role in missing)
        raise Unavailable(f"not registered after {timeout_s:g} s: {names}; {missing[0].process.log_tail()}")

    async def _start(self) -> None:
        lock = lock_directory(self._path, CLUSTER_OBJECTS)
        self._stack.callback(lock.release)
        for server in (self.postgres, self.etcd, self.s3):
            self._stack.push_async_callback(server.stop)
        await self.restart_servers()
        await self.s3.create_bucket(BUCKET)
        self.registry = EtcdRegistry(
            EtcdClient([self.etcd.endpoint]), CLUSTER, clock=SystemClock(), random=SystemRandom()
        )
        self._stack.push_async_callback(self.registry.close)
        await self.registry.start()
        self._plan_roles()
        sysdbs = [role for role in self.roles.values() if role.role == "sysdb"]
        await asyncio.gather(*(self._start_role(role) for role in sysdbs))
        await self._sysdb_is_up()
        rest = [role for role in self.roles.values() if role.role != "sysdb"]
        await asyncio.gather(*(self._start_role(role) for role in rest))
        self._supervision.start("supervisor", self._supervise())
        await self.wait_for_members()

    async def _sysdb_is_up(self) -> None:
        for _ in range(int(_READY_S / _POLL_S)):
            if self.registry.view().of("sysdb"):
                return
            await asyncio.sleep(_POLL_S)
        first = next(role for role in self.roles.values() if role.role == "sysdb")
        raise Unavailable(f"sysdb did not come up; {first.process.log_tail()}")

    def _plan_roles(self) -> None:
        counts = self._plan.counts()
        ports = iter(free_ports(3 * sum(counts.values())))
        for role, count in counts.items():
            for number in range(count):
                address, metrics, http = (f"127.0.0.1:{next(ports)}" for _ in range(3))
                first = role == "frontend" and number == 0
                if first and not self._plan.grpc.endswith(":0"):
                    address = self._plan.grpc
                if role != "frontend" or not self._plan.http:
                    http = ""
                elif first and not self._plan.http.endswith(":0"):
                    http = self._plan.http
                name = f"{role}-{number}"
                self.roles[name] = self._role(name, role, address, metrics, http)

    def _role(self, name: str, role: str, address: str, metrics: str, http: str) -> RoleProcess:
        home = self._path / "roles" / name
        home.mkdir(parents=True, exist_ok=True)
        log_path = home / "log"
        if log_path.exists() and log_path.stat().st_size > _LOG_LIMIT_BYTES:
            os.truncate(log_path, 0)
        settings = {
            f"{role}.listen": address,
            f"{role}.metrics": metrics,
            "frontend.http": http,
            "postgres.dsn": self.postgres.dsn,
            "etcd.endpoints": self.etcd.endpoint,
            "etcd.cluster": CLUSTER,
            "objects.s3.bucket": BUCKET,
            "objects.s3.endpoint": self.s3.endpoint_url,
            "objects.s3.access_key": self.s3.access_key,
            "objects.s3.secret_key": self.s3.secret_key,
            "objects.s3.allow_http": "true",
            "cache.directory": str(home / "cache"),
        }
        if (certificates := self._plan.certificates) is not None:
            settings |= {
                "tls.ca_file": str(certificates.absolute() / "ca.crt"),
                "tls.cert_file": str(certificates.absolute() / f"{role}.crt"),
                "tls.key_file": str(certificates.absolute() / f"{role}.key"),
            }
        environment = {f"SHOAL_{key.replace('.', '__').upper()}": value for key, value in settings.items()}
        inherited = {
            key: os.environ[key] for key in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME") if key in os.environ
        }
        command = ServerCommand(
            argv=(sys.executable, "-m", "shoal_cli", "serve", role),
            cwd=home,
            log_path=log_path,
            env={**inherited, "OPENBLAS_NUM_THREADS": "1", **environment, **self._plan.environment},
            stop_timeout_s=15.0,
        )
        return RoleProcess(name, role, address, metrics, http, command, ServerProcess(name))

    async def _start_role(self, role: RoleProcess) -> None:
        await role.process.start(role.command)

    async def _supervise(self) -> None:
        """Start roles again that ended, as an orchestrator would."""
        while True:
            await asyncio.sleep(_RESTART_S)
            for role in self.roles.values():
                if role.process.is_running:
                    continue
                await role.process.wait_exit(5.0)
                _log.warning("%s ended with code %s; starting it again", role.name, role.process.exit_code)
                try:
                    await self._start_role(role)
                except ShoalError as error:
                    _log.warning("cannot start %s yet: %s", role.name, error)

    def find(self, name: str) -> RoleProcess:
        """A role's process by name, such as ``querynode-0``. Raises `NotFound`."""
        if name not in self.roles:
            raise NotFound(f"no process {name}; there are {', '.join(self.roles)}")
        return self.roles[name]
