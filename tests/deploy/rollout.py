"""Workloads of pods as a cluster runs them: a Service over those that are ready, and an update pod by pod."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence

from tests.deploy.chart import Manifest
from tests.deploy.kubelet import Node, Pod

# After a pod becomes ready, or stops to be, nodes hear of it a little later: what the frontends' preStop pause is for.
_ENDPOINTS_LAG_S = 1.0


class Workload:
    """The pods of one Deployment or StatefulSet."""

    def __init__(self, node: Node, manifest: Manifest, replicas: int) -> None:
        self._node = node
        self._manifest = manifest
        self._replicas = replicas
        self._numbers = itertools.count()
        self.pods: list[Pod] = []
        self.gone: list[tuple[Pod, float]] = []

    @property
    def name(self) -> str:
        """Its role."""
        name: str = self._manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        return name

    async def start(self) -> None:
        """All pods at once; returns when they are ready."""
        self.pods = [self._made(str(ordinal)) for ordinal in range(self._replicas)]
        await asyncio.gather(*(pod.start() for pod in self.pods))
        await asyncio.gather(*(pod.wait_ready() for pod in self.pods))

    async def roll(self) -> None:
        """Replace every pod, as the manifest's strategy says."""
        if self._manifest["kind"] == "StatefulSet":
            await self._roll_in_place()
        else:
            await self._roll_with_surge()

    async def stop(self) -> None:
        """End all pods."""
        await asyncio.gather(*(self._delete(pod) for pod in list(self.pods)))

    async def _roll_with_surge(self) -> None:
        strategy = self._manifest["spec"]["strategy"]
        assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        for number, old in enumerate(list(self.pods)):
            fresh = self._made(f"new-{number}")
            self.pods.append(fresh)
            await fresh.start()
            await fresh.wait_ready()
            await self._delete(old)

    async def _roll_in_place(self) -> None:
        """From the last ordinal down; the new pod has the volume of the old one."""
        assert self._manifest["spec"]["updateStrategy"]["type"] == "RollingUpdate"
        for old in reversed(list(self.pods)):
            await self._delete(old)
            fresh = self._made(old.name.rpartition("-")[2], again=True)
            self.pods.append(fresh)
            await fresh.start()
            await fresh.wait_ready()

    def _made(self, suffix: str, *, again: bool = False) -> Pod:
        claims = f"{self.name}-{suffix}"
        return self._node.pod(
            f"{claims}{f'-again-{next(self._numbers)}' if again else ''}", self._manifest, volumes=claims
        )

    async def _delete(self, pod: Pod) -> None:
        took_s = await pod.delete()
        self.pods.remove(pod)
        self.gone.append((pod, took_s))


class Service:
    """An address that leads to a ready pod for each new connection; connections stay with their pod until it closes them."""

    def __init__(self, address: str, ports: dict[int, int], pods: Callable[[], Sequence[Pod]]) -> None:
        self.address = address
        self._ports = ports
        self._pods = pods
        self._turn = itertools.count()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._endpoints: list[str] = []

    async def __aenter__(self) -> Service:
        self._track(self._follow())
        for port, target in self._ports.items():
            self._servers.append(await asyncio.start_server(self._accepting(target), self.address, port))
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def has_endpoints(self, count: int) -> None:
        """Wait until it leads to so many pods."""
        while len(self._endpoints) < count:
            await asyncio.sleep(0.05)

    async def _follow(self) -> None:
        while True:
            ready = [pod.address for pod in self._pods() if pod.ready and not pod.terminating]
            if ready != self._endpoints:
                await asyncio.sleep(_ENDPOINTS_LAG_S)
                self._endpoints = ready
            await asyncio.sleep(0.05)

    def _accepting(self, target: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        return lambda reader, writer: self._track(self._relay(reader, writer, target))

    def _track(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
        try:
            if not self._endpoints:
                return
            address = self._endpoints[next(self._turn) % len(self._endpoints)]
            there_reader, there_writer = await asyncio.open_connection(address, target)
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        except OSError:
            return
        finally:
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        with contextlib.suppress(OSError):
            writer.close()
