"""The rendered chart as processes over real stores: it comes up, serves, and is replaced pod by pod without a failed request."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import shoal.aio
from shoal_runtime.servers.etcd import find_etcd
from shoal_runtime.servers.ports import free_ports
from shoal_runtime.servers.seaweedfs import find_weed
from shoal_testing.processes import S3Settings
from tests.deploy.chart import EVALUATION, PREFIX, PRODUCTION, Helm, Manifest, of_kind, store_workloads, workloads
from tests.deploy.kubelet import Given, Node
from tests.deploy.rollout import Service, Workload

pytestmark = pytest.mark.integration

TOKEN = "a root token that is long enough to be one"
COUNTS = {"sysdb": 2, "logservice": 2, "querynode": 2, "compactor": 1, "frontend": 2}
DIMENSION = 8
HERE = "127.0.0.1"
NAME = "localhost"  # of the Service, for those outside of the cluster
OUTSIDE = "stores.example.com"  # where they are for pods, whose loopback is their own


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where callers come in, and the CA in PEM that signed what they see; empty for plain text."""

    grpc: int
    http: int
    authority: str = ""
    host: str = NAME

    def connect(self) -> Any:
        """A client with default retries."""
        credentials = grpc.ssl_channel_credentials(self.authority.encode()) if self.authority else None
        return shoal.aio.connect(f"{self.host}:{self.grpc}", token=TOKEN, credentials=credentials)

    def over_http(self, method: str, path: str, body: Any = None) -> Any:
        """One request of a caller without retries, on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.http, timeout=30)
        if self.authority:
            trust = ssl.create_default_context(cadata=self.authority)
            connection = http.client.HTTPSConnection(self.host, self.http, timeout=30, context=trust)
        try:
            headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", "Connection": "close"}
            text = None if body is None else json.dumps(body)
            connection.request(
                method, f"/api/v2/tenants/default_tenant/databases/default_database{path}", text, headers
            )
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status in (200, 201), (answer.status, data)
            return json.loads(data)
        finally:
            connection.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="shoal-chart-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def manifests(helm: Helm, etcd_endpoint: str, s3_settings: S3Settings) -> list[Manifest]:
    """What production gets, over the stores of this test, which speak no TLS, with certificates of Helm and fewer pods."""
    values = {
        "tls.enabled": True,
        "tls.source": "generated",
        "frontend.tls.dnsNames": [NAME],
        "postgres.caSecret": "",
        "etcd.tlsSecret": "",
        "etcd.endpoints": [etcd_endpoint.replace(HERE, OUTSIDE)],
        "objects.s3.bucket": s3_settings.bucket,
        "objects.s3.endpoint": s3_settings.endpoint_url.replace(HERE, OUTSIDE),
        "objects.s3.allowHttp": True,
        # Flush early: the updates of this test are to hit compactions at work. A name with a dot is one key.
        r"compactor.settings.compactor\.max_age_ms": 500,
    }
    options = [part for name, value in values.items() for part in ("--set-json", f"{name}={json.dumps(value)}")]
    return helm.template(*PRODUCTION, *options)


@pytest.fixture
def given(manifests: list[Manifest], folder: Path, fresh_database: str, s3_settings: S3Settings) -> Given:
    return Given(
        folder,
        rendered_objects(manifests)
        | {
            "shoal-postgres": {"dsn": fresh_database},
            "shoal-objects": {"accessKey": s3_settings.access_key, "secretKey": s3_settings.secret_key},
            "shoal-access": {"rootToken": TOKEN},
        },
        services={OUTSIDE: HERE},
    )


@asynccontextmanager
async def running(manifests: list[Manifest], given: Given) -> AsyncIterator[tuple[Entrance, dict[str, Workload]]]:
    """The migration, then every workload, and the Service of the frontends."""
    node = Node(given)
    try:
        output = await node.run_job(of_kind(manifests, "Job")["migrate"])
        assert "applied 0001_initial.sql" in output
        found = {role: Workload(node, each, COUNTS[role]) for role, each in workloads(manifests).items()}
        await asyncio.gather(*(workload.start() for workload in found.values()))
        names = [port["targetPort"] for port in service_ports(manifests)]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        targets = {ports[name]: target(manifests, name) for name in names}
        async with Service(HERE, targets, lambda: found["frontend"].pods) as service:
            await service.has_endpoints(COUNTS["frontend"])
            yield Entrance(ports["grpc"], ports["http"], authority(given)), found
    finally:
        await node.close()


def service_ports(manifests: list[Manifest]) -> list[Manifest]:
    ports: list[Manifest] = of_kind(manifests, "Service")["frontend"]["spec"]["ports"]
    return ports


def target(manifests: list[Manifest], name: str) -> int:
    (container,) = workloads(manifests)["frontend"]["spec"]["template"]["spec"]["containers"]
    (port,) = [each["containerPort"] for each in container["ports"] if each["name"] == name]
    return int(port)


def authority(given: Given) -> str:
    return given.objects[f"{PREFIX}-ca"]["ca.crt"]


def fetched(address: str, port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(address, port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def vectors(first: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(first).random((count, DIMENSION), dtype=np.float32)


async def tour(client: Any, entrance: Entrance) -> None:
    """What a reader of the README does first, with Shoal's client and over HTTP."""
    glosses = await client.get_or_create_collection("glosses", space="cosine")
    await glosses.add(
        ids=["n1", "n2"], embeddings=[[1, 0], [0, 1]], documents=["sea", "hammer"], metadatas=[{"n": 1}, {"n": 2}]
    )
    found = await glosses.query(query_embeddings=[[1, 0.1]], n_results=1, where={"n": 1})
    assert found["ids"] == [["n1"]]
    collection = (await asyncio.to_thread(entrance.over_http, "GET", "/collections/glosses"))["id"]
    got = await asyncio.to_thread(entrance.over_http, "POST", f"/collections/{collection}/get", {"ids": ["n2"]})
    assert got["documents"] == ["hammer"]
    await glosses.delete(ids=["n2"])
    assert await glosses.count() == 1
    await client.delete_collection("glosses")


class Load:
    """Callers that go on until they are told to stop; any request that fails ends them."""

    def __init__(self, client: Any, entrance: Entrance) -> None:
        self._client = client
        self._entrance = entrance
        self._over = asyncio.Event()
        self.requests = 0
        self.written = 0

    async def run(self) -> None:
        collection = await self._client.get_or_create_collection("load", dimension=DIMENSION)
        await collection.upsert(ids=["first"], embeddings=vectors(0, 1))
        key = (await asyncio.to_thread(self._entrance.over_http, "GET", "/collections/load"))["id"]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(lambda: self._write(collection)))
            group.create_task(self._repeat(lambda: self._query(collection)))
            group.create_task(self._repeat(lambda: asyncio.to_thread(self._count, key)))
        assert await collection.count() == 1 + self.written

    def stop(self) -> None:
        self._over.set()

    async def _repeat(self, request: Any) -> None:
        while not self._over.is_set():
            await request()
            self.requests += 1
            await asyncio.sleep(0.02)

    async def _write(self, collection: Any) -> None:
        ids = [str(number) for number in range(self.written, self.written + 5)]
        await collection.add(ids=ids, embeddings=vectors(self.written, 5))
        self.written += 5

    async def _query(self, collection: Any) -> None:
        found = await collection.query(query_embeddings=vectors(1, 1), n_results=3)
        assert found["ids"][0]

    def _count(self, key: str) -> None:
        assert self._entrance.over_http("GET", f"/collections/{key}/count") > 0


def rendered_objects(manifests: list[Manifest]) -> dict[str, dict[str, str]]:
    """Secrets and ConfigMaps of the release: name → key → value."""
    found = [each for each in manifests if each["kind"] in ("Secret", "ConfigMap")]
    return {each["metadata"]["name"]: content(each) for each in found}


def content(manifest: Manifest) -> dict[str, str]:
    """Key → value, as files would have it."""
    data: dict[str, str] = manifest.get("data", {})
    if manifest["kind"] == "Secret":
        data = {name: base64.b64decode(value).decode() for name, value in data.items()}
    return data | manifest.get("stringData", {})


async def test_evaluation_brings_its_own_etcd_and_s3(helm: Helm, folder: Path, fresh_database: str) -> None:
    """All but Postgres, whose image has an entry point of its own: the Secret names the database of this test instead."""
    manifests = helm.template(*EVALUATION)
    objects = rendered_objects(manifests)
    objects[f"{PREFIX}-stores"]["dsn"] = fresh_database
    services: dict[str, str] = {}
    programs = {"weed": str(find_weed()), "/usr/local/bin/etcd": str(find_etcd())}
    node = Node(Given(folder, objects, programs, services))
    try:
        stores = [Workload(node, each, 1) for name, each in store_workloads(manifests).items() if name != "postgres"]
        await asyncio.gather(*(store.start() for store in stores))
        services.update({f"{PREFIX}-{store.name}": store.pods[0].address for store in stores})
        found = {role: Workload(node, each, 1) for role, each in workloads(manifests).items()}
        await found["sysdb"].start()  # the others would end until it has migrated, and be started again
        await asyncio.gather(*(workload.start() for role, workload in found.items() if role != "sysdb"))
        entrance = Entrance(8800, 8000, host=found["frontend"].pods[0].address)
        async with await entrance.connect() as client:
            await tour(client, entrance)
        rule = await asyncio.to_thread(fetched, services[f"{PREFIX}-s3"], 8888, "/etc/seaweedfs/filer.conf")
        assert json.loads(rule) == {"locations": [{"locationPrefix": "/", "fsync": True}]}
    finally:
        await node.close()


async def test_the_chart_comes_up_serves_and_is_replaced_under_load(manifests: list[Manifest], given: Given) -> None:
    async with running(manifests, given) as (entrance, found):
        async with await entrance.connect() as client:
            await tour(client, entrance)
            load = Load(client, entrance)
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run())
                await asyncio.gather(*(workload.roll() for workload in found.values()))
                load.stop()
            assert load.requests > 100
        await asyncio.gather(*(workload.stop() for workload in found.values()))
        for workload in found.values():
            assert len(workload.gone) == 2 * COUNTS[workload.name]
            for pod, took_s in workload.gone:
                assert not pod.complaints, f"{pod.name}: {pod.complaints}"
                assert took_s < pod.spec["terminationGracePeriodSeconds"]
