"""Real servers on this machine without a container engine: Postgres, etcd and an S3 server, each under a guard.

Every server keeps all it has under one directory, locked against a second process, on loopback ports that it remembers,
and ends with the process that started it, however that one ends.
"""

from __future__ import annotations

from shoal_runtime.servers.etcd import EtcdServer
from shoal_runtime.servers.ports import free_ports
from shoal_runtime.servers.postgres import PostgresServer
from shoal_runtime.servers.postgres_pair import PostgresPair
from shoal_runtime.servers.process import DirectoryLock, ServerCommand, ServerProcess
from shoal_runtime.servers.seaweedfs import SeaweedServer

__all__ = [
    "DirectoryLock",
    "EtcdServer",
    "PostgresPair",
    "PostgresServer",
    "SeaweedServer",
    "ServerCommand",
    "ServerProcess",
    "free_ports",
]
