"""Bad input: a typed error that names the field, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shoal_core.contracts import CollectionRef, Condition, Include, NewCollection
from shoal_core.errors import (
    AlreadyExists,
    DimensionMismatch,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ShoalError,
    WriteConflict,
)
from shoal_core.filters import (
    And,
    Comparator,
    Compare,
    Exists,
    Filter,
    IdIn,
    ListContains,
    Membership,
    Or,
    Text,
    TextMatcher,
    parse_where,
)
from shoal_core.limits import Limits
from shoal_core.records import DELETED_KEYS, SPARSE_TYPE, embedding_array
from shoal_core.schema import Index, Schema, SparseConfig
from shoal_frontend.database import DatabaseService
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT

DIMENSION = 3
SMALL = Limits(
    batch_records=5,
    batch_size_bytes=20_000,
    id_size_bytes=16,
    document_size_bytes=32,
    uri_size_bytes=16,
    metadata_keys=4,
    metadata_key_size_bytes=8,
    metadata_value_size_bytes=16,
    metadata_list_length=4,
    query_vectors=3,
    query_results=10,
    get_results=10,
    dimension=8,
    idempotency_key_size_bytes=8,
    page_size=10,
    shards=4,
    collection_metadata_size_bytes=100,
)


class Fixture:
    """A collection with one record, and a frontend with small limits."""

    def __init__(self) -> None:
        self.system = DirectSystem()
        base = self.system.new_database()
        self.database = DatabaseService(
            base.catalog, base.log, base.nodes, self.system.random, base.members, limits=SMALL
        )
        self.ref: CollectionRef

    async def state(self) -> tuple[Any, ...]:
        """Everything that a refused call must leave alone."""
        state = self.system.catalog.state(self.ref.id)
        tenants = await self.system.catalog.count_collections(DEFAULT_TENANT, DEFAULT_DATABASE)
        return (state.head_offset, state.collection, tenants)


@pytest.fixture(params=[1, 3])
async def fixture(request: pytest.FixtureRequest) -> Fixture:
    made = Fixture()
    made.ref = await made.system.create(shards=request.param)
    await made.database.write(made.ref, batch())
    return made


def batch(rows: int = 2, **columns: pa.Array | None) -> pa.RecordBatch:
    """A good batch of adds; columns given replace its own, None removes one. ``_`` in a name stands for ``:``."""
    made: dict[str, pa.Array] = {
        "op": pa.array([0] * rows, pa.uint8()),
        "id": pa.array([f"id-{n}" for n in range(rows)], pa.string()),
        "embedding": embedding_array(np.ones((rows, DIMENSION), np.float32)),
    }
    for name, column in columns.items():
        made.pop(name, None)
        if column is not None:
            made[name] = column
    return pa.record_batch(made)


def meta(kind: str, values: list[Any], key: str = "a") -> pa.RecordBatch:
    """A batch with one metadata column."""
    types = {
        "int": pa.int64(),
        "float": pa.float64(),
        "str": pa.string(),
        "strs": pa.list_(pa.string()),
        "floats": pa.list_(pa.float64()),
        "ints": pa.list_(pa.int64()),
        "sparse": SPARSE_TYPE,
    }
    return batch(len(values), **{f"m:{kind}:{key}": pa.array(values, types[kind])})


def vectors(*rows: Any, dimension: int = DIMENSION) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float32(), dimension))


GOOD = [1.0, 1.0, 1.0]
NAN, INF = float("nan"), float("inf")

BAD_BATCHES: dict[str, tuple[Callable[[], pa.RecordBatch], type[ShoalError], str]] = {
    "no records": (lambda: batch(0), InvalidArgument, "ids"),
    "too many records": (lambda: batch(6), InvalidArgument, "ids"),
    "too many bytes": (lambda: meta("str", ["x" * 30_000, None]), InvalidArgument, "records"),
    "id null": (lambda: batch(id=pa.array(["a", None])), InvalidArgument, "ids[1]"),
    "id empty": (lambda: batch(id=pa.array(["a", ""])), InvalidArgument, "ids[1]"),
    "id too long": (lambda: batch(id=pa.array(["a", "é" * 9])), InvalidArgument, "ids[1]"),
    "ids missing": (lambda: batch(id=None), InvalidArgument, "ids"),
    "ids of integers": (lambda: batch(id=pa.array([1, 2])), InvalidArgument, "id"),
    "ids of large strings": (lambda: batch(id=pa.array(["a", "b"], pa.large_string())), InvalidArgument, "id"),
    "operations missing": (lambda: batch(op=None), InvalidArgument, "operations"),
    "operation null": (lambda: batch(op=pa.array([0, None], pa.uint8())), InvalidArgument, "operations"),
    "operation unknown": (lambda: batch(op=pa.array([0, 4], pa.uint8())), InvalidArgument, "operations[1]"),
    "operations of another type": (lambda: batch(op=pa.array([0, 0], pa.int64())), InvalidArgument, "op"),
    "another dimension": (
        lambda: batch(embedding=vectors([1.0, 2.0], [1.0, 2.0], dimension=2)),
        DimensionMismatch,
        "embeddings",
    ),
    "dimension too large": (
        lambda: batch(embedding=vectors([1.0] * 9, [1.0] * 9, dimension=9)),
        InvalidArgument,
        "embeddings",
    ),
    "NaN": (lambda: batch(embedding=vectors(GOOD, [1.0, NAN, 1.0])), InvalidArgument, "embeddings[1]"),
    "infinity": (lambda: batch(embedding=vectors([-INF, 1.0, 1.0], GOOD)), InvalidArgument, "embeddings[0]"),
    "null in a vector": (lambda: batch(embedding=vectors(GOOD, [1.0, None, 1.0])), InvalidArgument, "embeddings[1]"),
    "no vectors": (lambda: batch(embedding=None), InvalidArgument, "embeddings[0]"),
    "a vector missing": (lambda: batch(embedding=vectors(GOOD, None)), InvalidArgument, "embeddings[1]"),
    "vectors of doubles": (
        lambda: batch(embedding=pa.array([GOOD, GOOD], pa.list_(pa.float64(), 3))),
        InvalidArgument,
        "embedding",
    ),
    "vectors of any length": (
        lambda: batch(embedding=pa.array([GOOD, GOOD], pa.list_(pa.float32()))),
        InvalidArgument,
        "embedding",
    ),
    "document too long": (
        lambda: batch(document=pa.array(["x", "é" * 17])),
        InvalidArgument,
        "documents[1]",
    ),
    "documents of integers": (lambda: batch(document=pa.array([1, 2])), InvalidArgument, "document"),
    "a column nobody knows": (lambda: batch(score=pa.array([1, 2])), InvalidArgument, "score"),
    "a column of the system": (
        lambda: batch(created_offset=pa.array([1, 2], pa.uint64())),
        InvalidArgument,
        "created_offset",
    ),
    "a malformed column name": (lambda: batch(**{"m:a": pa.array([1, 2])}), InvalidArgument, "m:a"),
    "an unknown kind": (lambda: batch(**{"m:date:a": pa.array([1, 2])}), InvalidArgument, "m:date:a"),
    "a kind of another type": (lambda: batch(**{"m:int:a": pa.array(["x", "y"])}), InvalidArgument, "m:int:a"),
    "a column twice": (
        lambda: pa.RecordBatch.from_arrays([pa.array(["a"]), pa.array(["b"])], ["id", "id"]),
        InvalidArgument,
        "id",
    ),
    "uri too long": (lambda: meta("str", ["x", "y" * 17], "#uri"), InvalidArgument, "uris[1]"),
    "uri of another kind": (lambda: meta("int", [1, 2], "#uri"), InvalidArgument, "m:int:#uri"),
    "key reserved by #": (lambda: meta("int", [1, 2], "#x"), InvalidArgument, "metadatas.#x"),
    "key reserved by $": (lambda: meta("int", [1, 2], "$x"), InvalidArgument, "metadatas.$x"),
    "key empty": (lambda: meta("int", [1, 2], ""), InvalidArgument, "metadatas."),
    "key too long": (lambda: meta("int", [1, 2], "é" * 5), InvalidArgument, "metadatas.ééééé"),
    "too many keys": (
        lambda: batch(**{f"m:int:k{n}": pa.array([1, 2], pa.int64()) for n in range(5)}),
        InvalidArgument,
        "metadatas",
    ),
    "value too long": (lambda: meta("str", [None, "é" * 9]), InvalidArgument, "metadatas.a[1]"),
    "value NaN": (lambda: meta("float", [1.0, NAN]), InvalidArgument, "metadatas.a[1]"),
    "value infinite": (lambda: meta("float", [-INF, None]), InvalidArgument, "metadatas.a[0]"),
    "list empty": (lambda: meta("ints", [None, []]), InvalidArgument, "metadatas.a[1]"),
    "list too long": (lambda: meta("ints", [[1], [1] * 5]), InvalidArgument, "metadatas.a[1]"),
    "list with null": (lambda: meta("ints", [[1], [1, None]]), InvalidArgument, "metadatas.a"),
    "list with NaN": (lambda: meta("floats", [[1.0], [NAN]]), InvalidArgument, "metadatas.a"),
    "list with a long string": (lambda: meta("strs", [["x", "x"], ["y", "y" * 17]]), InvalidArgument, "metadatas.a[1]"),
    "two kinds in one record": (
        lambda: batch(**{"m:int:a": pa.array([1, 2], pa.int64()), "m:float:a": pa.array([None, 2.0], pa.float64())}),
        InvalidArgument,
        "metadatas.a",
    ),
    "deleted key reserved": (
        lambda: batch(**{DELETED_KEYS: pa.array([None, ["#uri"]], pa.list_(pa.string()))}),
        InvalidArgument,
        "metadatas.#uri",
    ),
    "deleted key empty": (
        lambda: batch(**{DELETED_KEYS: pa.array([None, [""]], pa.list_(pa.string()))}),
        InvalidArgument,
        "metadatas.",
    ),
    "deleted key null": (
        lambda: batch(**{DELETED_KEYS: pa.array([None, [None]], pa.list_(pa.string()))}),
        InvalidArgument,
        "metadatas.",
    ),
}

BAD_SPARSE = {
    "lengths differ": {"indices": [1, 2], "values": [1.0]},
    "no values": {"indices": [1, 2], "values": None},
    "no indices": {"indices": None, "values": [1.0]},
    "not ascending": {"indices": [2, 1], "values": [1.0, 1.0]},
    "an index twice": {"indices": [2, 2], "values": [1.0, 1.0]},
    "a null index": {"indices": [1, None], "values": [1.0, 1.0]},
    "a null value": {"indices": [1, 2], "values": [1.0, None]},
    "NaN": {"indices": [1], "values": [NAN]},
    "too long": {"indices": [1, 2, 3, 4, 5], "values": [1.0] * 5},
}


async def _refused(fixture: Fixture, made: pa.RecordBatch, error: type[ShoalError], field: str) -> None:
    before = await fixture.state()
    with pytest.raises(error) as caught:
        await fixture.database.write(fixture.ref, made)
    assert caught.value.field == field
    assert caught.value.message
    assert await fixture.state() == before


@pytest.mark.parametrize("name", BAD_BATCHES)
async def test_a_bad_batch_is_refused_whole(fixture: Fixture, name: str) -> None:
    make, error, field = BAD_BATCHES[name]
    await _refused(fixture, make(), error, field)


@pytest.mark.parametrize("name", BAD_SPARSE)
async def test_a_bad_sparse_vector_is_refused(fixture: Fixture, name: str) -> None:
    good = {"indices": [1, 7], "values": [0.5, -1.0]}
    await fixture.database.write(fixture.ref, meta("sparse", [good, None]))
    await _refused(fixture, meta("sparse", [good, BAD_SPARSE[name]]), InvalidArgument, "metadatas.a")


async def test_a_large_bad_batch_is_refused_too(fixture: Fixture) -> None:
    limits = replace(SMALL, batch_size_bytes=1 << 30, document_size_bytes=1 << 20)
    base = fixture.database
    large = DatabaseService(base.catalog, base.log, base.nodes, base.random, base.members, limits=limits)
    before = await fixture.state()
    with pytest.raises(InvalidArgument) as caught:  # large enough to be checked in a thread
        await large.write(fixture.ref, batch(document=pa.array(["x" * 400_000, "y" * (2 << 20)])))
    assert caught.value.field == "documents[1]"
    assert await fixture.state() == before


async def test_good_batches_pass(fixture: Fixture) -> None:
    good = [
        batch(5),
        batch(document=pa.array(["é" * 16, None])),
        batch(op=pa.array([1, 3], pa.uint8()), embedding=None),
        batch(op=pa.array([1, 1], pa.uint8()), embedding=vectors(GOOD, None)),
        batch(**{"m:int:a": pa.array([1, None], pa.int64()), "m:float:a": pa.array([None, 2.0], pa.float64())}),
        batch(**{DELETED_KEYS: pa.array([["a", "b"], None], pa.list_(pa.string()))}),
        meta("strs", [["x" * 16], None]),
        meta("str", ["u" * 16, None], "#uri"),
        batch(3).slice(1, 2),
    ]
    for made in good:
        before = fixture.system.catalog.state(fixture.ref.id).head_offset
        result = await fixture.database.write(fixture.ref, made)
        assert (result.first_offset, result.token.offset) == (before + 1, before + made.num_rows)


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"idempotency_key": "é" * 5}, InvalidArgument, "idempotency_key"),
        ({"idempotency_key": "\ud800"}, InvalidArgument, "idempotency_key"),
        ({"idempotency_key": "a\0"}, InvalidArgument, "idempotency_key"),
        ({"condition": Condition(0, tuple("abcdef"))}, InvalidArgument, "condition.read_ids"),
        ({"condition": Condition(0, ("a", ""))}, InvalidArgument, "condition.read_ids[1]"),
        ({"condition": Condition(0, ("\ud800",))}, InvalidArgument, "condition.read_ids"),
        ({"condition": Condition(10**6, ("id-0",))}, InvalidArgument, "condition.read_offset"),
        ({"condition": Condition(0, ("id-0",))}, WriteConflict, ""),
    ],
)
async def test_a_write_with_bad_options(fixture: Fixture, fields: Any, error: type[ShoalError], field: str) -> None:
    before = await fixture.state()
    with pytest.raises(error) as caught:
        await fixture.database.write(fixture.ref, batch(), **fields)
    assert caught.value.field == field
    assert await fixture.state() == before


async def test_a_key_used_before_with_another_batch(fixture: Fixture) -> None:
    await fixture.database.write(fixture.ref, batch(), idempotency_key="key")
    before = await fixture.state()
    with pytest.raises(FailedPrecondition):
        await fixture.database.write(fixture.ref, batch(3), idempotency_key="key")
    assert await fixture.state() == before


async def test_a_collection_that_does_not_exist(fixture: Fixture) -> None:
    for ref in (replace(fixture.ref, id="nobody"), CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, "nobody")):
        for call in (
            lambda ref=ref: fixture.database.write(ref, batch()),
            lambda ref=ref: fixture.database.get(ref),
            lambda ref=ref: fixture.database.count(ref),
            lambda ref=ref: fixture.database.query(ref, np.ones((1, 3), np.float32), 1),
            lambda ref=ref: fixture.database.delete_where(ref, ids=["id-0"], where=None),
            lambda ref=ref: fixture.database.delete_where(ref, ids=None, where=Exists("a")),
            lambda ref=ref: fixture.database.indexing_status(ref),
            lambda ref=ref: fixture.database.delete_collection(ref),
            lambda ref=ref: fixture.database.modify_collection(ref, name="other"),
        ):
            with pytest.raises(NotFound):
                await call()


# --- reads


def nested(depth: int) -> Filter:
    tree: Filter = Exists("a")
    for _ in range(depth - 1):
        tree = And((tree,))
    return tree


BAD_FILTERS: dict[str, tuple[Filter, str]] = {
    "too deep": (nested(17), "where"),
    "too many conditions": (Or((Exists("a"),) * 1100), "where"),
    "too many values": (Membership("a", tuple(range(10_001))), "where"),
    "too many ids": (IdIn(("x",) * 10_001), "where"),
    "and of nothing": (And(()), "where"),
    "or of nothing, inside": (And((Exists("a"), Or(()))), "where"),
    "in nothing": (Membership("a", ()), "where.a"),
    "in a mixture": (Membership("a", ("x", 1)), "where.a"),
    "in a mixture with bools": (Membership("a", (True, 1)), "where.a"),
    "NaN": (Compare("a", Comparator.GT, NAN), "where.a"),
    "in NaN": (Membership("a", (1.0, NAN)), "where.a"),
    "a list with NaN": (ListContains("a", NAN), "where.a"),
    "an integer too large": (Compare("a", Comparator.EQ, 2**63), "where.a"),
    "a bool that is greater": (Compare("a", Comparator.GT, True), "where.a"),
}


@pytest.mark.parametrize("name", BAD_FILTERS)
async def test_a_bad_filter_is_refused(fixture: Fixture, name: str) -> None:
    where, field = BAD_FILTERS[name]
    before = await fixture.state()
    calls: list[Callable[[], Any]] = [
        lambda: fixture.database.get(fixture.ref, where=where),
        lambda: fixture.database.count(fixture.ref, where=where),
        lambda: fixture.database.query(fixture.ref, np.ones((1, 3), np.float32), 1, where=where),
        lambda: fixture.database.delete_where(fixture.ref, ids=None, where=where),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument) as caught:
            await call()
        assert caught.value.field == field
    assert await fixture.state() == before


async def test_a_regular_expression_that_is_none(fixture: Fixture) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await fixture.database.get(fixture.ref, where=Text(TextMatcher.REGEX, "("))
    assert caught.value.field == "where_document.$regex"


async def test_filters_at_the_border_pass(fixture: Fixture) -> None:
    good: list[Filter | None] = [
        nested(16),
        Membership("a", (1, 2.5)),
        Membership("a", (True, False), negated=True),
        Compare("a", Comparator.LT, INF),
        Compare("a", Comparator.GTE, -(2**63)),
        IdIn(()),
        parse_where({"a": {"$in": [1, 2]}}),
    ]
    for where in good:
        assert (await fixture.database.count(fixture.ref, where=where)).count in (0, 2)


BAD_READS: dict[str, tuple[dict[str, Any], type[ShoalError], str]] = {
    "id empty": ({"ids": ["a", ""]}, InvalidArgument, "ids[1]"),
    "id null": ({"ids": ["a", None]}, InvalidArgument, "ids[1]"),
    "id too long": ({"ids": ["x" * 17]}, InvalidArgument, "ids[0]"),
    "id a number": ({"ids": ["a", 1]}, InvalidArgument, "ids"),
    "id no text": ({"ids": ["\ud800"]}, InvalidArgument, "ids"),
    "too many ids": ({"ids": ["a"] * 11}, InvalidArgument, "ids"),
    "limit negative": ({"limit": -1}, InvalidArgument, "limit"),
    "limit too large": ({"limit": 11}, InvalidArgument, "limit"),
    "offset negative": ({"offset": -1}, InvalidArgument, "offset"),
    "a key that none has": ({"include": Include(keys=("a", "#x"))}, InvalidArgument, "include.keys"),
    "too many keys": ({"include": Include(keys=tuple(map(str, range(65))))}, InvalidArgument, "include.keys"),
}


@pytest.mark.parametrize("name", BAD_READS)
async def test_a_bad_get_is_refused(fixture: Fixture, name: str) -> None:
    fields, error, field = BAD_READS[name]
    with pytest.raises(error) as caught:
        await fixture.database.get(fixture.ref, **fields)
    assert caught.value.field == field


BAD_QUERIES: dict[str, tuple[Any, int, dict[str, Any], type[ShoalError], str]] = {
    "another dimension": (np.ones((1, 4), np.float32), 1, {}, DimensionMismatch, "query_embeddings"),
    "dimension 0": (np.ones((1, 0), np.float32), 1, {}, InvalidArgument, "query_embeddings"),
    "dimension too large": (np.ones((1, 9), np.float32), 1, {}, InvalidArgument, "query_embeddings"),
    "no vectors": (np.ones((0, 3), np.float32), 1, {}, InvalidArgument, "query_embeddings"),
    "too many vectors": (np.ones((4, 3), np.float32), 1, {}, InvalidArgument, "query_embeddings"),
    "one flat vector": (np.ones(3, np.float32), 1, {}, InvalidArgument, "query_embeddings"),
    "vectors of integers": (np.ones((1, 3), np.int64), 1, {}, InvalidArgument, "query_embeddings"),
    "NaN": (np.array([GOOD, [1, NAN, 1]], np.float32), 1, {}, InvalidArgument, "query_embeddings[1]"),
    "infinity": (np.array([[1, INF, 1]], np.float32), 1, {}, InvalidArgument, "query_embeddings[0]"),
    "k negative": (np.ones((1, 3), np.float32), -1, {}, InvalidArgument, "n_results"),
    "ef negative": (np.ones((1, 3), np.float32), 1, {"ef": -1}, InvalidArgument, "ef"),
    "ef too large": (np.ones((1, 3), np.float32), 1, {"ef": 11}, InvalidArgument, "ef"),
    "recall too small": (np.ones((1, 3), np.float32), 1, {"recall": 0.4}, InvalidArgument, "recall"),
    "recall of one": (np.ones((1, 3), np.float32), 1, {"recall": 1.0}, InvalidArgument, "recall"),
    "k too large": (np.ones((1, 3), np.float32), 11, {}, InvalidArgument, "n_results"),
    "id empty": (np.ones((1, 3), np.float32), 1, {"ids": [""]}, InvalidArgument, "ids[0]"),
}


@pytest.mark.parametrize("name", BAD_QUERIES)
async def test_a_bad_query_is_refused(fixture: Fixture, name: str) -> None:
    vectors, k, fields, error, field = BAD_QUERIES[name]
    with pytest.raises(error) as caught:
        await fixture.database.query(fixture.ref, vectors, k, **fields)
    assert caught.value.field == field


async def test_deleting_needs_a_selection(fixture: Fixture) -> None:
    before = await fixture.state()
    for fields, field in (
        ({"ids": None, "where": None}, "where"),
        ({"ids": [""], "where": None}, "ids[0]"),
        ({"ids": None, "where": Exists("a"), "limit": -1}, "limit"),
        ({"ids": None, "where": Exists("a"), "idempotency_key": "x" * 9}, "idempotency_key"),
        ({"ids": [f"id-{n}" for n in range(6)], "where": None}, "ids"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await fixture.database.delete_where(fixture.ref, **fields)
        assert caught.value.field == field
    assert await fixture.state() == before


# --- names and collections

BAD_NAMES = ["", "ab", "-abc", "abc-", ".abc", "a b c", "a..b", "1.2.3.4", "x" * 513, "ünï", "a/b", "abc\n", "a\0c"]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_a_bad_name_is_refused(fixture: Fixture, name: str) -> None:
    before = await fixture.state()
    with pytest.raises(InvalidArgument) as caught:
        await fixture.database.create_collection(NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, name))
    assert caught.value.field == "name"
    with pytest.raises(InvalidArgument) as caught:
        await fixture.database.modify_collection(fixture.ref, name=name)
    assert caught.value.field == "name"
    with pytest.raises(InvalidArgument) as caught:
        await fixture.database.create_database(DEFAULT_TENANT, name)
    assert caught.value.field == "database.name"
    assert await fixture.state() == before


NO_NAMES = ["x" * 513, "a\0c", "ab\ud800"]


@pytest.mark.parametrize("name", NO_NAMES)
async def test_names_that_nothing_has_are_not_looked_up(fixture: Fixture, name: str) -> None:
    database, ref = fixture.database, fixture.ref
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("name", lambda: database.get_tenant(name)),
        ("tenant", lambda: database.get_database(name, "d")),
        ("name", lambda: database.get_database("t", name)),
        ("name", lambda: database.delete_database("t", name)),
        ("tenant", lambda: database.list_databases(name)),
        ("tenant", lambda: database.create_database(name, "fine")),
        ("database", lambda: database.list_collections("t", name)),
        ("database", lambda: database.count_collections("t", name)),
        ("tenant", lambda: database.create_collection(NewCollection(name, "d", "fine"))),
        ("name", lambda: database.get_collection(replace(ref, id="", name=name))),
        ("tenant", lambda: database.get(replace(ref, tenant=name))),
        ("id", lambda: database.write(replace(ref, id=name), batch())),
        ("database", lambda: database.delete_collection(replace(ref, database=name))),
    ]
    for field, call in calls:
        with pytest.raises(InvalidArgument) as caught:
            await call()
        assert caught.value.field == field


@pytest.mark.parametrize("name", ["", "ab", *NO_NAMES])
async def test_a_bad_tenant_name_is_refused(fixture: Fixture, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await fixture.database.create_tenant(name)
    assert caught.value.field == "tenant.name"


def _deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(levels):
        made = {"a": made}
    return made


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"space": "manhattan"}, "space"),
        ({"shards": 0}, "shards"),
        ({"shards": 5}, "shards"),
        ({"dimension": 0}, "dimension"),
        ({"dimension": 9}, "dimension"),
        ({"metadata": {"a": [1]}}, "metadata.a"),
        ({"metadata": {"": 1}}, "metadata."),
        ({"metadata": {"a": NAN}}, "metadata"),
        ({"metadata": {"a": "x" * 200}}, "metadata"),
        ({"metadata": "text"}, "metadata"),
        ({"configuration": {"a": object()}}, "configuration"),
        ({"configuration": {"a": "x" * 200}}, "configuration"),
        ({"configuration": _deep(100_000)}, "configuration"),
        ({"configuration": []}, "configuration"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"schema": Schema(keys={"#x": {Index.INT: False}})}, "schema.keys.#x"),
        ({"schema": Schema(keys={"k" * 9: {Index.INT: False}})}, "schema.keys.kkkkkkkkk"),
        ({"schema": Schema(keys={f"k{n}": {Index.INT: False} for n in range(50)})}, "schema"),
        ({"schema": Schema(sparse={"$s": SparseConfig()})}, "schema.sparse.$s"),
        ({"schema": Schema(sparse={"s": SparseConfig(source_key="#x")})}, "schema.sparse.s.source_key"),
        ({"schema": Schema(sparse={"s": SparseConfig(embedding_function={"f": object()})})}, "schema"),
    ],
)
async def test_a_collection_that_cannot_be(fixture: Fixture, fields: dict[str, Any], field: str) -> None:
    before = await fixture.state()
    new = replace(NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "fine"), **fields)
    with pytest.raises(InvalidArgument) as caught:
        await fixture.database.create_collection(new)
    assert caught.value.field == field
    changes = {name: fields[name] for name in ("metadata", "configuration", "schema") if name in fields}
    if changes:
        with pytest.raises(InvalidArgument) as caught:
            await fixture.database.modify_collection(fixture.ref, **changes)
        assert caught.value.field == field
    assert await fixture.state() == before


@pytest.mark.parametrize(("limit", "offset", "field"), [(-1, 0, "limit"), (11, 0, "limit"), (1, -1, "offset")])
async def test_a_bad_page_of_a_list(fixture: Fixture, limit: int, offset: int, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await fixture.database.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE, limit=limit, offset=offset)
    assert caught.value.field == field
    with pytest.raises(InvalidArgument) as caught:
        await fixture.database.list_databases(DEFAULT_TENANT, limit=limit, offset=offset)
    assert caught.value.field == field


async def test_a_name_that_is_taken(fixture: Fixture) -> None:
    new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "other")
    made, created = await fixture.database.create_collection(new)
    assert created
    assert await fixture.database.create_collection(new, get_or_create=True) == (made, False)
    with pytest.raises(AlreadyExists):
        await fixture.database.create_collection(new)
    with pytest.raises(AlreadyExists):
        await fixture.database.modify_collection(fixture.ref, name="other")
