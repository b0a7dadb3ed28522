"""Bad input through a real frontend: a typed error that names the field, and nothing written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from shoal_cli.local_cluster import LocalCluster
from shoal_core.contracts import CollectionRef, NewCollection
from shoal_core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    DimensionMismatch,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    ShoalError,
)
from shoal_core.limits import Limits
from shoal_core.records import Operation
from shoal_wire.clients.public import PublicClient
from shoal_wire.messages import message_options
from shoal_wire.status import error_from_rpc
from shoal_wire.v1 import shoal_pb2 as pb
from shoal_wire.v1.types_pb2 import MetadataColumn, RecordColumns

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

DIMENSION = 4
TENANT, DATABASE = "default_tenant", "default_database"
Change = Callable[[RecordColumns], None]


def good(count: int = 2) -> RecordColumns:
    """Records that are accepted."""
    return RecordColumns(
        ids=[f"id{n}" for n in range(count)],
        operations=bytes([Operation.ADD]),
        dimension=DIMENSION,
        embeddings=np.ones((count, DIMENSION), np.float32).tobytes(),
        documents=["text"] * count,
        metadata=[MetadataColumn(key="n", kind="int", numbers=np.arange(count).tobytes())],
    )


def _numbers(value: float) -> Change:
    return lambda records: setattr(
        records, "embeddings", np.array([[1, 1, 1, 1], [1, value, 1, 1]], np.float32).tobytes()
    )


def _ids(*ids: str) -> Change:
    def change(records: RecordColumns) -> None:
        del records.ids[:]
        records.ids.extend(ids)

    return change


def _set(**fields: object) -> Change:
    def change(records: RecordColumns) -> None:
        for name, value in fields.items():
            setattr(records, name, value)

    return change


def _metadata(**fields: object) -> Change:
    def change(records: RecordColumns) -> None:
        for name, value in fields.items():
            setattr(records.metadata[0], name, value)

    return change


def _large(records: RecordColumns) -> None:
    records.CopyFrom(good(Limits().batch_records + 1))


BAD: list[tuple[str, Change, type[ShoalError], str]] = [
    (
        "wrong dimension",
        _set(dimension=8, embeddings=np.ones((2, 8), np.float32).tobytes()),
        DimensionMismatch,
        "embeddings",
    ),
    ("NaN", _numbers(np.nan), InvalidArgument, "embeddings[1]"),
    ("infinite", _numbers(np.inf), InvalidArgument, "embeddings[1]"),
    ("empty id", _ids("a", ""), InvalidArgument, "ids[1]"),
    ("oversized id", _ids("a", "x" * 513), InvalidArgument, "ids[1]"),
    ("no records", _set(), InvalidArgument, "ids"),
    ("oversized batch", _large, InvalidArgument, "ids"),
    ("missing embedding", _set(dimension=0, embeddings=b""), InvalidArgument, "embeddings"),
    ("bytes that are no rows", _set(embeddings=b"\0" * 7), InvalidArgument, "embeddings"),
    ("unknown operation", _set(operations=bytes([9])), InvalidArgument, "operations"),
    ("unknown kind", _metadata(kind="date"), InvalidArgument, "metadata"),
    ("too few numbers", _metadata(numbers=b"\0" * 8), InvalidArgument, "metadata"),
    ("reserved key", _metadata(key="#mine"), InvalidArgument, "metadatas.#mine"),
    ("empty key", _metadata(key=""), InvalidArgument, "metadata"),
    (
        "NaN in metadata",
        _metadata(kind="float", numbers=np.array([np.nan, 1.0]).tobytes()),
        InvalidArgument,
        "metadatas.n",
    ),
]


class Door:
    """A channel to one frontend, with a collection whose head is known."""

    def __init__(self, channel: grpc.aio.Channel, ref: CollectionRef) -> None:
        self.channel = channel
        self.api = PublicClient(channel)
        self.ref = ref

    async def head(self) -> int:
        return (await self.api.indexing_status(self.ref)).head_offset

    async def send(self, method: str, message: bytes, timeout_s: float = 10.0) -> bytes:
        """The bytes as they are, so that what no client would send can be sent."""
        call: Any = self.channel.unary_unary(f"/shoal.v1.ShoalService/{method}")
        try:
            answer: bytes = await call(message, timeout=timeout_s)
            return answer
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, write=method == "Write") from error

    def write(self, records: RecordColumns) -> bytes:
        ref = pb.CollectionRef(tenant=TENANT, database=DATABASE, id=self.ref.id)
        return pb.WriteRequest(collection=ref, records=records).SerializeToString()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def door(cluster: LocalCluster) -> AsyncIterator[Door]:
    channel = grpc.aio.insecure_channel(cluster.frontends[0], options=message_options())
    api = PublicClient(channel)
    new = NewCollection(TENANT, DATABASE, "strict", dimension=None)
    collection, _ = await api.create_collection(new)
    opened = Door(channel, CollectionRef(TENANT, DATABASE, id=collection.id))
    await opened.send("Write", opened.write(good()))
    yield opened
    await channel.close()


@pytest.mark.parametrize(("change", "error", "field"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
async def test_bad_records_are_refused(door: Door, change: Change, error: type[ShoalError], field: str) -> None:
    before = await door.head()
    records = good(0) if field == "ids" and change is BAD[5][1] else good()
    change(records)
    with pytest.raises(error) as caught:
        await door.send("Write", door.write(records))
    assert field in caught.value.field
    assert caught.value.message
    assert await door.head() == before


async def test_malformed_protobuf_is_refused(door: Door) -> None:
    before = await door.head()
    for method in ("Write", "Query", "Get", "CreateCollection"):
        with pytest.raises(InvalidArgument):
            await door.send(method, b"\xff\xff\xff not a message")
    assert await door.head() == before


async def test_an_expired_deadline_says_so(door: Door) -> None:
    with pytest.raises(DeadlineExceeded):
        await door.send("Get", pb.GetRequest(collection=pb.CollectionRef(id=door.ref.id)).SerializeToString(), 1e-6)
    before = await door.head()
    with pytest.raises((OutcomeUnknown, DeadlineExceeded)):
        await door.send("Write", door.write(good()), 1e-6)
    assert await door.head() == before


async def test_unknown_collections_and_bad_names(door: Door) -> None:
    missing = (
        replace(door.ref, id="", name="nothing-here"),
        replace(door.ref, id="00000000-0000-4000-8000-000000000000"),
        replace(door.ref, id="no uuid"),
        replace(door.ref, tenant="somebody-else"),
    )
    for ref in missing:
        with pytest.raises(NotFound):
            await door.api.count(ref)
        with pytest.raises(NotFound):
            await door.api.delete_where(ref, ids=["a"], where=None)
    for name in ("", "a", "ab", "-abc", "a..b", "10.0.0.1", "x" * 600, "spa ce"):
        with pytest.raises(InvalidArgument) as caught:
            await door.api.create_collection(NewCollection(TENANT, DATABASE, name))
        assert caught.value.field == "name"
    with pytest.raises(InvalidArgument):
        await door.api.create_collection(NewCollection(TENANT, DATABASE, "spaced", space="manhattan"))
    with pytest.raises(InvalidArgument):
        await door.api.create_collection(NewCollection(TENANT, DATABASE, "sharded", shards=1000))
    with pytest.raises(AlreadyExists):
        await door.api.create_collection(NewCollection(TENANT, DATABASE, "strict"))
    with pytest.raises(NotFound):
        await door.api.create_collection(NewCollection(TENANT, "no-such-database", "orphan"))


async def test_bad_queries_are_refused(door: Door) -> None:
    ones = np.ones((1, DIMENSION), np.float32)
    with pytest.raises(DimensionMismatch):
        await door.api.query(door.ref, np.ones((1, 9), np.float32), 3)
    with pytest.raises(InvalidArgument):
        await door.api.query(door.ref, ones * np.nan, 3)
    with pytest.raises(InvalidArgument):
        await door.api.query(door.ref, np.ones((1001, DIMENSION), np.float32), 3)
    with pytest.raises(InvalidArgument):
        await door.api.query(door.ref, ones, 10**6)
    with pytest.raises(InvalidArgument):
        await door.api.delete_where(door.ref, ids=None, where=None)
