"""The gRPC face of the compactor, for operators and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import grpc.aio

from shoal_core.contracts import VersionInfo
from shoal_wire.server import add_service
from shoal_wire.v1 import compactor_pb2 as pb


class RunningJob(Protocol):
    """A job under way: ``kind`` is ``flush`` or ``merge``, ``records`` how many it works on."""

    @property
    def collection_id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def records(self) -> int: ...


class CompactNow(Protocol):
    """What this face serves."""

    async def compact(self, collection_id: str, *, merge: bool) -> VersionInfo:
        """Flush one collection now, merge if asked. Raises `NotFound`, `Unavailable` (another compactor is at it)."""
        ...

    def jobs(self) -> Sequence[RunningJob]:
        """Jobs under way."""
        ...


class CompactorServicer:
    """Serves a compactor as ``shoal.v1.CompactorService``."""

    def __init__(self, compactor: CompactNow) -> None:
        self._compactor = compactor

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server that has not been started."""
        add_service(server, pb.DESCRIPTOR, "CompactorService", self)

    async def compact(self, request: pb.CompactRequest) -> pb.CompactResponse:
        version = await self._compactor.compact(request.collection_id, merge=request.merge)
        return pb.CompactResponse(version=version.version, compacted_offset=version.compacted_offset)

    async def list_jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        jobs = [
            pb.Job(collection_id=job.collection_id, kind=job.kind, stage=job.stage, records=job.records)
            for job in self._compactor.jobs()
        ]
        return pb.ListJobsResponse(jobs=jobs)
