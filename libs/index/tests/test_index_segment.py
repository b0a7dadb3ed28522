"""Segments: what is built is what is read, and graph, scan and plain arithmetic agree."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from shoal_core.filters import parse_where
from shoal_core.records import CREATED_OFFSET, DOCUMENT, EMBEDDING, ID, UPDATED_OFFSET, embedding_array
from shoal_index.build import build_segment, decode_tombstones, encode_tombstones, sort_rows
from shoal_index.ids import IdIndex
from shoal_index.planner import Ask, Strategy
from shoal_index.segment import Pieces, Segment, open_segment
from shoal_index.vector.clusters import ClusterIndex
from shoal_index.vector.engine import SPACES, Neighbours, exact_distances, order_by_distance
from shoal_index.vector.hnsw import HnswIndex
from shoal_storage.blocks import BlockRef


class Blocks:
    """A block reader over what was built."""

    def __init__(self, objects: dict[str, pa.Buffer]) -> None:
        self.objects = objects

    async def get(self, ref: BlockRef) -> pa.Buffer:
        return self.objects[ref.key]


def row_table(count: int, dimension: int, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    return sort_rows(
        pa.table(
            {
                ID: [f"id-{n}" for n in range(count)],
                CREATED_OFFSET: pa.array(random.permutation(count).astype(np.uint64) + 1),
                UPDATED_OFFSET: pa.array(np.arange(count, dtype=np.uint64) + 1),
                DOCUMENT: [f"text {n}" * (1 + n % 7) for n in range(count)],
                "m:int:n": pa.array(np.arange(count)),
                EMBEDDING: embedding_array(random.standard_normal((count, dimension), dtype=np.float32)),
            }
        )
    )


def graph_of(segment: Segment) -> HnswIndex:
    """The graph among a segment's ways."""
    [index] = [way.index for way in segment.ways if isinstance(way.index, HnswIndex)]
    return index


async def opened(table: pa.Table, space: str = "l2", *, graph_rows: int = 10**9) -> Segment:
    built = build_segment(table, space, segment_id="s", tier=0, prefix="c/u", threads=2, graph_rows=graph_rows)
    return await open_segment(built.ref, space, Blocks({ref.key: block.data for ref, block in built.objects}))


def brute_force(table: pa.Table, space: str, query: np.ndarray, k: int, allowed: np.ndarray) -> list[int]:
    vectors = table.column(EMBEDDING).combine_chunks().values.to_numpy().reshape(table.num_rows, -1)
    distances = exact_distances(space, query, vectors)
    distances[~allowed] = np.inf
    order = order_by_distance(distances, table.column(CREATED_OFFSET).to_numpy(), k)
    return [int(row) for row in order if np.isfinite(distances[row])]


async def test_reads_back_what_was_built_across_many_blocks() -> None:
    table = row_table(30_000, 96)
    segment = await opened(table)
    assert len(segment.ref.blocks["vectors"]) > 1
    assert len(segment.ref.blocks["rows"]) >= 1
    rows = np.array([29_999, 0, 12_345, 12_344, 0])
    taken = segment.take(rows, [ID, DOCUMENT, "m:int:n", EMBEDDING, "m:str:absent"])
    assert taken.equals(table.select([ID, DOCUMENT, "m:int:n", EMBEDDING]).take(pa.array(rows)).combine_chunks())
    assert segment.take(np.array([], np.int64), [ID]).num_rows == 0


def test_pieces_are_taken_in_the_order_asked_for_and_copied_once_where_it_is_theirs() -> None:
    pieces = Pieces(
        [pa.table({"id": ["a", "b"], "x": [1, 2]}), pa.table({"id": ["c"]}), pa.table({"id": ["d"], "x": [4]})]
    )
    for rows in ([0, 2, 3], [3, 2, 1, 0], [2, 0, 0, 3, 2], [1], []):
        taken = pieces.take(np.array(rows, np.int64))
        assert taken.column("id").to_pylist() == ["abcd"[row] for row in rows]
        expected = [[1, 2, None, 4][row] for row in rows]
        assert (taken.column("x").to_pylist() if "x" in taken.column_names else [None] * len(rows)) == expected
    assert pieces.take(np.array([0, 2, 3])).column("id").num_chunks == 3
    assert pieces.take(np.array([2, 1, 0]), ["x", "id", "absent"]).to_pydict() == {"id": [*"cba"], "x": [None, 2, 1]}


async def test_locates_ids_and_only_those() -> None:
    table = row_table(5_000, 4)
    segment = await opened(table)
    ids = pa.array([*(f"id-{n}" for n in range(0, 5_000, 7)), "absent", "id-5000", ""])
    rows = segment.locate(ids)
    names = table.column(ID).to_pylist()
    for name, row in zip(ids.to_pylist(), rows, strict=True):
        assert (names[row] == name) if row >= 0 else (name not in names)
    assert (rows[-3:] == -1).all()


def test_a_hash_collision_is_resolved_by_the_id() -> None:
    ids = pa.array(["a", "b", "c"])
    index = IdIndex(np.array([5, 5, 9], np.uint64), np.array([0, 1, 2], np.uint32))
    asked = pa.array(["b", "a", "x", "c"])
    found = index.locate(asked, np.array([5, 5, 5, 9], np.uint64), lambda rows: ids.take(pa.array(rows)))
    assert found.tolist() == [1, 0, -1, 2]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("share", [1.0, 0.7, 0.2, 0.002])
async def test_exact_search_is_exact(space: str, share: float) -> None:
    table = row_table(4_000, 24)
    segment = await opened(table, space)
    random = np.random.default_rng(1)
    allowed = random.random(4_000) < share
    queries = random.standard_normal((5, 24), dtype=np.float32)
    found, plan = segment.search(queries, Ask(10), allowed=allowed, threads=1)
    assert plan.strategy is Strategy.SCAN
    parts = np.split(found.rows, np.cumsum(found.counts)[:-1])
    for query, rows in zip(queries, parts, strict=True):
        assert rows.tolist() == brute_force(table, space, query, 10, allowed)


async def test_identical_and_zero_vectors_come_in_order_of_creation() -> None:
    table = row_table(300, 8)
    same = np.zeros((300, 8), np.float32)
    same[:60] = 1.0
    table = table.set_column(table.column_names.index(EMBEDDING), EMBEDDING, embedding_array(same))
    for space in SPACES:
        segment = await opened(table, space)
        found, _ = segment.search(np.ones((1, 8), np.float32), Ask(100, exact=True), allowed=None, threads=1)
        assert found.rows.tolist() == list(range(100))


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-10, 1.0, 1e15])
async def test_cosine_does_not_depend_on_length(scale: float) -> None:
    """Also where the square of a length is no float32 any more."""
    random = np.random.default_rng(5)
    directions = random.standard_normal((400, 6))
    lengths = 10.0 ** random.uniform(-25, 15, (400, 1))
    table = row_table(400, 6)
    column = table.column_names.index(EMBEDDING)
    segment = await opened(
        table.set_column(column, EMBEDDING, embedding_array((directions * lengths).astype(np.float32))), "cosine"
    )
    query = random.standard_normal(6)
    asked = (query * scale)[None, :].astype(np.float32)
    found, _ = segment.search(asked, Ask(10, exact=True), allowed=None, threads=1)
    cosines = directions @ query / np.linalg.norm(directions, axis=1)
    assert found.rows.tolist() == np.argsort(-cosines)[:10].tolist()


@pytest.mark.parametrize("space", SPACES)
async def test_the_graph_finds_what_the_scan_finds(space: str) -> None:
    segment = await opened(row_table(12_000, 16), space, graph_rows=1000)
    random = np.random.default_rng(2)
    queries = random.standard_normal((50, 16), dtype=np.float32)
    for share in (1.0, 0.9):
        allowed = None if share == 1.0 else random.random(12_000) < share
        near, plan = segment.search(queries, Ask(10, effort=200), allowed=allowed, threads=2)
        true, _ = segment.search(queries, Ask(10, exact=True), allowed=allowed, threads=1)
        assert plan.strategy is Strategy.GRAPH
        hits = sum(len({*a} & {*b}) for a, b in zip(near.rows.reshape(50, 10), true.rows.reshape(50, 10), strict=True))
        assert hits / 500 > 0.95
        assert allowed is None or allowed[near.rows].all()


async def test_never_fewer_than_k_when_k_are_allowed() -> None:
    """All that is allowed lies in a heap far from the one that most queries are in."""
    table = row_table(6_000, 8)
    vectors = np.random.default_rng(3).standard_normal((6_000, 8), dtype=np.float32) * np.float32(0.01)
    vectors[4_000:] += 100.0
    table = table.set_column(table.schema.get_field_index(EMBEDDING), EMBEDDING, embedding_array(vectors))
    segment = await opened(table, graph_rows=1000)
    queries = np.zeros((3, 8), np.float32)
    queries[1] = 100.0
    allowed = np.zeros(6_000, bool)
    allowed[4_000:5_500] = True
    found, plan = segment.search(queries, Ask(20, effort=20), allowed=allowed, threads=1)
    assert plan.strategy is Strategy.GRAPH
    assert found.counts.tolist() == [20, 20, 20]
    assert allowed[found.rows].all()


async def test_queries_that_a_graph_leads_nowhere_are_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    table = row_table(3_000, 8)
    segment = await opened(table, graph_rows=1000)
    graph = graph_of(segment)
    queries = np.random.default_rng(5).standard_normal((4, 8), dtype=np.float32)
    right = graph.search(queries, 5, effort=64, allowed=None, threads=1)

    class Torn:
        def search(self, *args: object, **options: object) -> tuple[Neighbours, npt.NDArray[np.int64]]:
            keep = np.array([*range(5), *range(5, 7), *range(10, 15)])  # two of the second query's, none of the last's
            found = Neighbours(right.rows[keep], right.distances[keep], np.array([5, 2, 5, 0]))
            return found, np.zeros(4, dtype=np.int64)

    monkeypatch.setattr(graph, "search_counting", Torn().search)
    found, _ = segment.search(queries, Ask(5, effort=64), allowed=None, threads=1)
    every = np.ones(3_000, dtype=bool)
    expected = [brute_force(table, "l2", query, 5, every) for query in queries]
    assert found.rows.reshape(4, 5)[[1, 3]].tolist() == [expected[1], expected[3]]
    assert found.rows.reshape(4, 5)[[0, 2]].tolist() == right.rows.reshape(4, 5)[[0, 2]].tolist()


async def test_searches_of_different_effort_run_beside_each_other() -> None:
    segment = await opened(row_table(3_000, 8), graph_rows=100)
    index = graph_of(segment)
    query = np.zeros((1, 8), np.float32)
    expected = {ef: index.search(query, 5, effort=ef, allowed=None, threads=1).rows.tolist() for ef in (10, 20, 30)}
    wrong: list[object] = []

    def search(ef: int) -> None:
        for _ in range(200):
            found = index.search(query, 5, effort=ef, allowed=None, threads=1)
            if found.rows.tolist() != expected[ef]:
                wrong.append(found)

    threads = [threading.Thread(target=search, args=(ef,)) for ef in (10, 20, 30, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert wrong == []


async def test_filter_masks_are_kept() -> None:
    segment = await opened(row_table(1_000, 4))
    tree = parse_where({"n": {"$lt": 10}})
    assert tree is not None
    assert np.count_nonzero(segment.matching(tree)) == 10
    assert segment.matching(tree) is segment.matching(tree)


def test_tombstones_round_trip() -> None:
    ref, block = encode_tombstones(np.array([7, 3, 3, 100_000]), "k")
    assert decode_tombstones(block.data).tolist() == [3, 7, 100_000]
    assert ref.size_bytes == 12


async def test_a_mask_that_nobody_may_write_to_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = await opened(row_table(6_000, 8), graph_rows=1_000)
    looks: list[int] = []
    clumping = ClusterIndex.clumping

    def look(index: ClusterIndex, mask: np.ndarray) -> float:
        looks.append(1)
        return clumping(index, mask)

    monkeypatch.setattr(ClusterIndex, "clumping", look)
    random = np.random.default_rng(1)
    query = random.standard_normal((1, segment.vectors.dimension)).astype(np.float32)
    for _ in range(100):  # masks come and go, at the same place in memory too
        mask = random.random(segment.rows) < random.uniform(0.2, 0.9)
        mask.flags.writeable = False
        for _ in range(2):
            found, plan = segment.search(query, Ask(5), allowed=mask, threads=1)
            assert bool(mask[found.rows].all())
            exact, _ = segment.search(query, Ask(segment.rows, exact=True), allowed=mask, threads=1)
            assert len(exact.rows) == np.count_nonzero(mask)
        assert plan.k == 5
    assert len(looks) == 100
    lists = next(way.index for way in segment.ways if isinstance(way.index, ClusterIndex))
    assert segment.kept_bytes == segment.vectors.kept_bytes + lists.kept_bytes > segment.vectors.kept_bytes
    changing = np.ones(segment.rows, dtype=bool)
    for rows in (4_000, 10):
        changing[rows:] = False
        found, plan = segment.search(query, Ask(segment.rows, exact=True), allowed=changing, threads=1)
        assert (len(found.rows), plan.k) == (rows, rows), "this one may be written to"
