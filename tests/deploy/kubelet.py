"""Pods of rendered manifests as processes of this machine: command, arguments, environment and probes as the chart says them.

What a node would give a pod is put in, and nothing else:

* the pod's address: a loopback address of its own. As all share one network, ``0.0.0.0`` and ``127.0.0.1`` become that address;
* values of Secrets and files of Secrets and ConfigMaps, from `Given`; so are the addresses of Services and other hosts, by name;
* volumes: folders. A path below a mount becomes one below its folder;
* the image: its entry point or where a program of it lies here, and PATH for its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import re
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal_runtime.servers.process import ServerCommand, ServerProcess
from tests.deploy.chart import Manifest, pod_of

Placing: TypeAlias = Callable[[str], str]

ENTRY_POINT = (str(Path(sys.executable).with_name("shoal")),)
_POLL_S = 0.05
_HOOK_S = 60.0


@dataclass(frozen=True, slots=True)
class Given:
    """What lies outside of the manifests.

    Attributes:
        folder: for volumes and logs.
        objects: Secret or ConfigMap → key → value.
        programs: command of an image → where it is here.
        services: name → address.
    """

    folder: Path
    objects: Mapping[str, Mapping[str, str]]
    programs: Mapping[str, str] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Pod:
    """One pod: its process, and what its probes say. Its probes run until it is deleted."""

    name: str
    address: str
    spec: Manifest
    command: ServerCommand
    process: ServerProcess
    post_start: tuple[str, ...] = ()
    ready: bool = False
    terminating: bool = False
    complaints: list[str] = field(default_factory=list)
    probing: asyncio.Task[None] | None = None

    @property
    def container(self) -> Manifest:
        """Its one container."""
        (container,) = self.spec["containers"]
        found: Manifest = container
        return found

    async def start(self) -> None:
        """Run it and begin to probe."""
        await self.process.start(self.command)
        await self._run_hook()
        self.probing = asyncio.create_task(self._probe_always(), name=f"probes-{self.name}")

    async def wait_ready(self) -> None:
        """Until the readiness probe succeeds; AssertionError with the end of its log when the startup probe gives up."""
        assert self.probing is not None
        while not self.ready:
            running = self.process.is_running and not self.probing.done()
            assert running, f"{self.name}: {self.complaints} {self.process.log_tail()}"
            await asyncio.sleep(_POLL_S)

    async def delete(self) -> float:
        """As the kubelet ends a pod: the preStop pause, SIGTERM, SIGKILL when the grace period is over; the seconds it took."""
        self.terminating, self.ready = True, False
        began = time.monotonic()
        pause_s = self.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        await asyncio.sleep(pause_s)
        if self.probing is not None:
            self.probing.cancel()
            await asyncio.gather(self.probing, return_exceptions=True)
        os.kill(self.process.pid, signal.SIGTERM)
        if not await self.process.wait_exit(self.command.stop_timeout_s):
            self.process.kill()
            await self.process.wait_exit(5)
        if self.process.exit_code != 0:
            self.complaints.append(f"ended with code {self.process.exit_code}; {self.process.log_tail()}")
        await self.process.stop()
        return time.monotonic() - began

    async def _run_hook(self) -> None:
        if not self.post_start:
            return
        hook = await asyncio.create_subprocess_exec(*self.post_start)
        try:
            assert await asyncio.wait_for(hook.wait(), _HOOK_S) == 0, f"{self.name}: its postStart hook failed"
        finally:
            if hook.returncode is None:
                hook.kill()
                await hook.wait()

    async def _probe_always(self) -> None:
        if "startupProbe" in self.container:
            await self._probe_startup(self.container["startupProbe"])
        kinds = [kind for kind in ("readiness", "liveness") if f"{kind}Probe" in self.container]
        await asyncio.gather(*map(self._follow, kinds))

    async def _probe_startup(self, probe: Manifest) -> None:
        for _ in range(probe["failureThreshold"]):
            if await self._probe(probe):
                return
            await asyncio.sleep(probe["periodSeconds"])
        raise AssertionError(f"{self.name} did not start; {self.process.log_tail()}")

    async def _follow(self, kind: str) -> None:
        probe, failures = self.container[f"{kind}Probe"], 0
        while True:
            failures = 0 if await self._probe(probe) else failures + 1
            if kind == "readiness":
                self.ready = (
                    not self.terminating
                    and failures < probe.get("failureThreshold", 3)
                    and (failures == 0 or self.ready)
                )
            elif failures >= probe["failureThreshold"]:
                self.complaints.append("the liveness probe failed: a kubelet would have started it again")
            await asyncio.sleep(probe["periodSeconds"])

    async def _probe(self, probe: Manifest) -> bool:
        if "grpc" in probe:
            return await _grpc_probe(self.address, probe["grpc"]["port"], probe["timeoutSeconds"])
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        return await asyncio.to_thread(_http_probe, self.address, ports, probe)


async def _grpc_probe(address: str, port: int, timeout_s: float) -> bool:
    async with grpc.aio.insecure_channel(f"{address}:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _http_probe(address: str, ports: Mapping[str, int], probe: Manifest) -> bool:
    get, timeout_s = probe["httpGet"], probe.get("timeoutSeconds", 1)
    port = ports.get(get["port"], get["port"])
    connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
    if get.get("scheme") == "HTTPS":  # the kubelet looks at no certificate
        unverified = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(address, port, timeout=timeout_s, context=unverified)
    try:
        connection.request("GET", get["path"])
        return 200 <= connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Node:
    """Makes pods and containers of manifests, and ends them all at the end."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._pods: list[Pod] = []
        self._taken: set[str] = set()

    def pod(self, name: str, workload: Manifest, *, volumes: str = "") -> Pod:
        """A pod that is not started yet. ``volumes`` names the folder of claims, of a pod that had them before."""
        spec, container = pod_of(workload)
        address = self.free_address([port["containerPort"] for port in container["ports"]])
        placed = self._placed(name, spec, address, volumes or name)
        pod = Pod(name, address, spec, self._command(name, spec, address, placed), ServerProcess(name))
        hook = container.get("lifecycle", {}).get("postStart", {}).get("exec", {}).get("command", ())
        pod.post_start = tuple(map(placed, hook))
        self._pods.append(pod)
        return pod

    async def run_job(self, job: Manifest) -> str:
        """Run a Job's container to its end; its output. AssertionError if it fails."""
        spec, _ = pod_of(job)
        address = self.free_address(())
        command = self._command("job", spec, address, self._placed("job", spec, address, "job"))
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            env=dict(command.env),
            cwd=command.cwd,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), job["spec"]["activeDeadlineSeconds"])
        assert process.returncode == 0, output.decode()
        return output.decode()

    async def close(self) -> None:
        """End what still runs."""
        tasks = [pod.probing for pod in self._pods if pod.probing is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pod in self._pods:
            pod.process.kill()
        await asyncio.gather(*(pod.process.stop() for pod in self._pods))

    def free_address(self, ports: Iterable[int]) -> str:
        """A loopback address on which nothing listens at these ports, and that no pod has."""
        wanted = tuple(ports)
        for _ in range(1_000):
            address = f"127.{random.randrange(16, 250)}.{random.randrange(256)}.{random.randrange(2, 255)}"
            if address not in self._taken and all(_is_free(address, port) for port in wanted):
                self._taken.add(address)
                return address
        raise AssertionError(f"no loopback address is free at the ports {wanted}")

    def _command(self, name: str, spec: Manifest, address: str, placed: Placing) -> ServerCommand:
        (container,) = spec["containers"]
        home = self._given.folder / name
        home.mkdir(parents=True, exist_ok=True)
        program, *options = container.get("command", ENTRY_POINT)
        return ServerCommand(
            argv=(self._given.programs.get(program, program), *map(placed, (*options, *container.get("args", ())))),
            cwd=Path(placed(container["workingDir"])) if "workingDir" in container else home,
            log_path=home / "log",
            env={"PATH": os.environ["PATH"], **self._environment(container, address, placed)},
            stop_timeout_s=spec.get("terminationGracePeriodSeconds", 30) - _pause_s(container),
        )

    def _environment(self, container: Manifest, address: str, placed: Placing) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in container.get("env", ()):
            source = each.get("valueFrom", {})
            if "secretKeyRef" in source:
                reference = source["secretKeyRef"]
                found[each["name"]] = self._given.objects[reference["name"]][reference["key"]]
            elif "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "status.podIP"
                found[each["name"]] = address
            else:
                value = each.get("value", "")
                for name, known in found.items():
                    value = value.replace(f"$({name})", known)
                found[each["name"]] = placed(value)
        return found

    def _placed(self, name: str, spec: Manifest, address: str, volumes: str) -> Placing:
        """Make the folders of a pod's volumes with their files; how its values read here."""
        (container,) = spec["containers"]
        known = {each["name"]: each for each in spec["volumes"]}
        mounts = {
            each["mountPath"]: self._given.folder / "volumes" / volumes / each["name"] / each.get("subPath", "")
            for each in container["volumeMounts"]
        }
        placed = _placing(address, {str(path): str(folder) for path, folder in mounts.items()}, self._given.services)
        for each in container["volumeMounts"]:
            folder = mounts[each["mountPath"]]
            if "emptyDir" in known.get(each["name"], {}):
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            for path, text in self._files(known.get(each["name"], {})):
                (folder / path).write_text(placed(text), encoding="utf-8")
        return placed

    def _files(self, volume: Manifest) -> list[tuple[str, str]]:
        source: dict[str, Any] = volume.get("secret") or volume.get("configMap") or {}
        if not source:
            return []
        content = self._given.objects[source.get("secretName") or source["name"]]
        items = source.get("items") or [{"key": key, "path": key} for key in content]
        return [(item["path"], content[item["key"]]) for item in items]


def _placing(address: str, mounts: Mapping[str, str], services: Mapping[str, str]) -> Placing:
    """A text with loopback and wildcard addresses, names of Services and paths below mounts put in, in one pass."""
    words = {"0.0.0.0": address, "127.0.0.1": address, **services, **mounts}
    # A path begins one: it follows no other part of a path, as it would in an URL.
    patterns = [
        rf"(?<![\w.{'/' if word[0] == '/' else ''}-]){re.escape(word)}" for word in sorted(words, key=len, reverse=True)
    ]
    pattern = re.compile(rf"(?:{'|'.join(patterns)})(?![\w.-])")
    return lambda text: pattern.sub(lambda match: words[match[0]], text)


def _pause_s(container: Manifest) -> int:
    pause_s: int = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    return pause_s


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return True
    return False
