"""Graphs whose links are coded: the estimates, what a walk by them finds, and how codes are built, kept, stored and chosen."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from bench.filters import Memory
from libs.index.tests.test_index_calibration import mixture
from libs.index.tests.test_index_kernels import column_of, graph_of
from shoal_core.errors import Corrupt
from shoal_core.records import CREATED_OFFSET, EMBEDDING, ID, UPDATED_OFFSET, embedding_array
from shoal_core.schema import VectorConfig
from shoal_index import build_vectors, planner
from shoal_index.build import BuiltSegment, build_segment
from shoal_index.build_vectors import Old, built_ways
from shoal_index.planner import Ask, Strategy, Way
from shoal_index.segment import TO_MERGE, TO_READ, Segment, open_segment
from shoal_index.vector import coded_graph, native
from shoal_index.vector.calibration import recalls_of
from shoal_index.vector.coded_graph import CODED_GRAPH, CodedGraphIndex, LinkCodes, code_links
from shoal_index.vector.column import VectorChunk, VectorColumn
from shoal_index.vector.engine import SPACES, Vectors, exact_distances, unit_vectors
from shoal_index.vector.exact import search_exact
from shoal_index.vector.hnsw import GRAPH, NONE, HnswIndex

K = 10
CODES = 32  # links of a block

Floats = npt.NDArray[np.float64]


def coded(index: HnswIndex) -> CodedGraphIndex:
    return CodedGraphIndex(code_links(index, threads=2), index)


@cache
def some(space: str, dimension: int, rows: int = 900) -> HnswIndex:
    random = np.random.default_rng(dimension)
    middles = random.standard_normal((20, dimension))
    vectors = middles[random.integers(20, size=rows)] + 0.6 * random.standard_normal((rows, dimension)) + 3.0
    return graph_of(column_of(vectors.astype(np.float32)), space)


def whole(column: VectorColumn, space: str) -> Vectors:
    vectors = column.gather(np.arange(column.count))
    return unit_vectors(vectors) if space == "cosine" else vectors


def unpacked(codes: LinkCodes, links: int, width: int) -> tuple[Floats, Floats, Floats]:
    """(n, links, width) signs, (n, links) biases and (n, links) slopes."""
    records = np.concatenate(codes.chunks)
    blocks = -(-links // CODES)
    parts = records.reshape(len(records), blocks, -1)
    nibbles = parts[:, :, : 4 * width].reshape(len(records), blocks, width // 4, 16)
    of_links = np.concatenate([nibbles & 15, nibbles >> 4], axis=3).transpose(0, 1, 3, 2)  # (n, blocks, 32, pieces)
    signs = np.where(of_links[..., None] >> np.arange(4) & 1, 1.0, -1.0).reshape(len(records), blocks * CODES, width)
    factors = np.ascontiguousarray(parts[:, :, 4 * width :]).view(np.float32).reshape(len(records), blocks, 2, CODES)
    biases, slopes = (factors[:, :, i].reshape(len(records), -1).astype(np.float64) for i in (0, 1))
    return signs[:, :links], biases[:, :links], slopes[:, :links]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dimension", [3, 64, 100, 384])
def test_codes_are_the_signs_and_factors_of_the_estimator(dimension: int, space: str, level: str) -> None:
    """In float64 of the definition. Which rotation it is follows from the codes alone: factors hold |r|² / Σ|r'| for any."""
    index = some(space, dimension, 300)
    codes = code_links(index, threads=2)
    width = -(-dimension // 64) * 64
    links = index.graph.links
    signs, biases, slopes = unpacked(codes, links.shape[1], width)
    vectors = whole(index.column, space).astype(np.float64)
    turned = rotated(vectors - codes.origin, width)
    used = links != NONE
    node, place = np.nonzero(used)
    other = links[node, place]
    r = turned[other] - turned[node]
    factor = (r**2).sum(axis=1) / np.abs(r).sum(axis=1)
    clear = np.abs(r) > 1e-4
    assert (np.sign(r) == signs[node, place])[clear].all()
    crossed = (np.where(r > 0, 1.0, -1.0) * turned[node]).sum(axis=1)
    along = (vectors[node] * (vectors[other] - vectors[node])).sum(axis=1)
    if space == "l2":
        expected, slope = (r**2).sum(axis=1) + 2 * factor * crossed, 2 * factor
    else:
        expected, slope = factor * crossed - along, factor
    scale = np.abs(expected).max()
    np.testing.assert_allclose(slopes[node, place], slope, rtol=1e-4)
    np.testing.assert_allclose(biases[node, place], expected, rtol=1e-3, atol=1e-4 * scale)
    assert not slopes[~used].any()


def test_estimates_have_no_bias_and_the_error_of_their_bits() -> None:
    """Of many links and queries: the mean error is nothing beside a single one, which falls with the root of the dimension."""
    errors = {}
    for dimension in (64, 256):
        index = some("l2", dimension)
        codes = code_links(index, threads=2)
        links = index.graph.links
        signs, biases, slopes = unpacked(codes, links.shape[1], dimension)
        vectors = whole(index.column, "l2").astype(np.float64)
        queries = np.random.default_rng(3).standard_normal((20, dimension)) + 3.0
        asked = rotated(queries - codes.origin, dimension)
        node, place = np.nonzero(links != NONE)
        other = links[node, place]
        found = []
        for query, at in zip(queries, asked, strict=True):
            own = ((query - vectors[node]) ** 2).sum(axis=1)
            estimate = own + biases[node, place] - slopes[node, place] * (signs[node, place] @ at)
            true = ((query - vectors[other]) ** 2).sum(axis=1)
            r = np.sqrt(((vectors[other] - vectors[node]) ** 2).sum(axis=1))
            found.append((estimate - true) / (np.sqrt(own) * r))
        error = np.concatenate(found)
        errors[dimension] = float(error.std())
        assert abs(error.mean()) < 0.03 * error.std()
    assert 1.7 < errors[64] / errors[256] < 2.4


def rotated(vectors: Floats, width: int) -> Floats:
    """Rows turned as native/rotation.hpp does it, in float64."""
    x = np.zeros((len(vectors), width))
    x[:, : vectors.shape[1]] = vectors
    power = 1 << (width.bit_length() - 1)
    for round_ in range(4):
        numbers = np.arange(round_ * width, (round_ + 1) * width, dtype=np.uint64) + np.uint64(1)
        z = numbers * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z = z ^ z >> np.uint64(31)
        x = x * np.where(z >> np.uint64(63), 1.0, -1.0)
        part = slice(width - power, width) if round_ % 2 else slice(0, power)
        x[:, part] = hadamard(x[:, part])
        if power < width:
            first, second = x[:, : width // 2].copy(), x[:, width // 2 :].copy()
            x[:, : width // 2], x[:, width // 2 :] = (first + second) / np.sqrt(2), (first - second) / np.sqrt(2)
    return x


def hadamard(x: Floats) -> Floats:
    size = x.shape[1]
    apart = 1
    while apart < size:
        pairs = x.reshape(len(x), -1, 2, apart)
        x = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(len(x), size)
        apart *= 2
    return x / np.sqrt(size)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dimension", [1, 7, 33, 100, 384])
def test_a_walk_with_much_effort_finds_what_an_exact_search_finds(dimension: int, space: str, level: str) -> None:
    index = some(space, dimension)
    queries = whole(index.column, "l2")[:40] + np.float32(0.1)
    true = search_exact(index.column, space, queries, K, allowed=None)
    walk = coded(index)
    plain = index.search(queries, K, effort=400, allowed=None, threads=1)
    least = float(recalls_of(plain, true, K).mean()) - 0.02  # of inner products the graph itself misses some
    for threads in (1, 2):
        found, visited = walk.search_counting(queries, K, effort=400, allowed=None, threads=threads)
        assert found.counts.tolist() == [K] * len(queries)
        assert float(recalls_of(found, true, K).mean()) > least
        assert (visited <= 900).all()
        measured = np.concatenate(
            [
                exact_distances(space, query, index.column.gather(rows))
                for query, rows in zip(queries, found.rows.reshape(-1, K), strict=True)
            ]
        )
        assert found.distances.tolist() == measured.tolist()
        ordered = found.distances.reshape(-1, K)
        assert (np.diff(ordered, axis=1) >= 0).all()


@pytest.mark.parametrize("space", SPACES)
def test_all_levels_answer_alike(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from libs.index.tests.conftest import levels

    index = some(space, 100)
    queries = whole(index.column, "l2")[:30] + np.float32(0.1)
    walk = coded(index)
    reference = walk.search(queries, K, effort=60, allowed=None, threads=1)
    for name in levels():
        loaded = native.load(name)
        monkeypatch.setattr(native, "_loaded", lambda loaded=loaded: loaded)
        found = coded(index).search(queries, K, effort=60, allowed=None, threads=1)
        assert float(recalls_of(found, reference, K).mean()) > 0.97, "sums of float32 differ by order alone"


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_only_allowed_rows_are_answered_and_others_are_walked_through(space: str, share: float, level: str) -> None:
    index = some(space, 48)
    allowed = np.random.default_rng(4).random(index.column.count) < share
    queries = whole(index.column, "l2")[:30] + np.float32(0.1)
    true = search_exact(index.column, space, queries, K, allowed=allowed)
    plain = index.search(queries, K, effort=100, allowed=allowed, threads=1)
    found = coded(index).search(queries, K, effort=200, allowed=allowed, threads=1)
    assert (found.counts >= plain.counts).all()
    assert allowed[found.rows].all()
    assert float(recalls_of(found, true, K).mean()) > float(recalls_of(plain, true, K).mean()) - 0.02


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("k", [1, 10, 100, 600])
def test_no_answer_is_shorter_than_that_of_the_graph_nor_has_a_row_twice(space: str, k: int, level: str) -> None:
    """With the least effort, also where a tenth is allowed: what is linked is found."""
    index = some(space, 24)
    tenth = np.random.default_rng(6).random(index.column.count) < 0.1
    queries = whole(index.column, "l2")[:20] + np.float32(0.1)
    for allowed in (None, tenth):
        plain = index.search(queries, k, effort=k, allowed=allowed, threads=1)
        found = coded(index).search(queries, k, effort=k, allowed=allowed, threads=1)
        assert (found.counts >= plain.counts).all()
        ends = np.cumsum(found.counts)
        for start, end in zip(ends - found.counts, ends, strict=True):
            assert len(np.unique(found.rows[start:end])) == end - start


@pytest.mark.parametrize("space", SPACES)
def test_what_has_no_direction_or_no_difference(space: str, level: str) -> None:
    """Zeros, vectors too short for float32, many that are equal, numbers whose squares overflow: nothing breaks, ties are in order."""
    random = np.random.default_rng(8)
    vectors = random.standard_normal((400, 40)).astype(np.float32)
    vectors[::2] = vectors[0]
    vectors[7], vectors[9] = 0.0, vectors[9] * np.float32(2.0**-70)
    index = graph_of(column_of(vectors), space)
    queries = np.stack([vectors[0], np.zeros(40, np.float32), vectors[9], vectors[1]])
    found = coded(index).search(queries, K, effort=400, allowed=None, threads=1)
    assert found.counts.tolist() == [K] * 4
    first = found.rows[:K]
    assert np.array_equal(first, np.sort(first)), "equal rows are in order of their ties"
    huge = graph_of(column_of((vectors * np.float32(1e19)).astype(np.float32)), "ip")
    assert coded(huge).search(queries, K, effort=100, allowed=None, threads=1).counts.tolist() == [K] * 4


@pytest.mark.parametrize("m", [2, 16, 40])
def test_graphs_of_any_width(m: int, level: str) -> None:
    """A block is of 32 links: some are not full, and wide nodes have several."""
    from shoal_index.vector.hnsw_build import GraphBuilder

    vectors = mixture(1_000, 5)
    column = VectorColumn([VectorChunk(vectors)], np.arange(1_000, dtype=np.uint64))
    builder = GraphBuilder(column, "l2", threads=1, m=m)
    builder.add(np.arange(1_000))
    index = HnswIndex(builder.graph(), column, "l2")
    true = search_exact(column, "l2", vectors[:50], K, allowed=None)
    found = coded(index).search(vectors[:50], K, effort=300, allowed=None, threads=1)
    assert float(recalls_of(found, true, K).mean()) > 0.9


def test_stored_and_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_graph, "_CHUNK_BYTES", 64 << 10)
    index = some("cosine", 100)
    codes = code_links(index, threads=2)
    assert len(codes.chunks) > 2
    links = index.graph.links.shape[1]
    tables = codes.to_tables()
    read = LinkCodes.of_tables(tables, 900, 100, links)
    assert read.size_bytes == codes.size_bytes
    assert all(np.array_equal(a, b) for a, b in zip(read.chunks, codes.chunks, strict=True))
    queries = whole(index.column, "l2")[:20]
    one, other = (
        CodedGraphIndex(each, index).search(queries, K, effort=50, allowed=None, threads=1) for each in (codes, read)
    )
    assert one.rows.tolist() == other.rows.tolist()
    for broken in (
        tables[:-1],
        tables[1:],
        [*tables[:2], *tables[3:]],
        [tables[0], tables[1].slice(0, 3), *tables[2:]],
        [tables[0].rename_columns(["other"]), *tables[1:]],
        [pa.table({"origin": tables[0].column("origin").cast(pa.float64())}), *tables[1:]],
        [tables[0].slice(0, 99), *tables[1:]],
        [],
    ):
        with pytest.raises(Corrupt, match="codes of a graph"):
            LinkCodes.of_tables(broken, 900, 100, links)
    for shape in ((899, 100, links), (900, 64, links), (900, 100, 2 * links)):
        with pytest.raises(Corrupt, match="codes of a graph"):
            LinkCodes.of_tables(tables, *shape)


def test_kernels_refuse_codes_of_another_graph() -> None:
    index, other = some("l2", 100), some("l2", 100, 800)
    codes = code_links(index, threads=1)
    with pytest.raises(ValueError, match=r"bytes|fit the kernel"):
        CodedGraphIndex(codes, other)
    with pytest.raises(ValueError, match="4096"):
        code_links(graph_of(column_of(np.ones((20, 4_100), np.float32)), "l2"), threads=1)


# --- building


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a visit took next to nothing: of small segments of few dimensions codes would not be worth it."""
    monkeypatch.setattr(coded_graph, "BEGIN_NS", (0.0, 0.0))
    monkeypatch.setattr(coded_graph, "VISIT_NS", (10.0, 0.0))


def built(vectors: Vectors, *old: Old, coded_graphs: bool = True, space: str = "l2") -> list[Way]:
    ties = np.arange(len(vectors), dtype=np.uint64)
    return built_ways(vectors, ties, space, VectorConfig(), threads=2, coded_graphs=coded_graphs, old=old)


def of_codes(ways: list[Way]) -> Way:
    [way] = [way for way in ways if way.strategy is Strategy.CODED_GRAPH]
    return way


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("space", SPACES)
def test_the_effort_that_was_measured_gives_the_recall_that_was_asked_for(space: str) -> None:
    vectors = mixture(3_000, 3)
    way = of_codes(built(vectors, space=space))
    assert way.calibration is not None
    column = VectorColumn([VectorChunk(vectors)], np.arange(len(vectors), dtype=np.uint64))
    queries = mixture(200, 99)
    true = search_exact(column, space, queries, K, allowed=None)
    for target in (0.9, 0.95):
        point = way.calibration.least(K, 1.0, target)
        assert point is not None
        found = way.index.search(queries, K, effort=point.effort, allowed=None, threads=1)
        assert float(recalls_of(found, true, K).mean()) > target - 0.02


@pytest.mark.usefixtures("cheap")
def test_codes_are_made_only_where_they_are_asked_for_and_cost_less() -> None:
    vectors = mixture(3_000, 3)
    assert all(way.strategy is not Strategy.CODED_GRAPH for way in built(vectors, coded_graphs=False))
    assert of_codes(built(vectors)).index.size_bytes > 0


def test_codes_that_do_not_pay_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CodedGraphIndex, "cost", lambda self, k, compared, *, shared: 1e9)
    ways = built(mixture(3_000, 3))
    assert [way.strategy for way in ways][:2] == [Strategy.GRAPH, Strategy.CLUSTERS]


@pytest.mark.usefixtures("cheap")
def test_codes_that_miss_the_recall_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they cost: here estimates have a bias that leads every walk astray."""

    def misled(index: HnswIndex, *, threads: int) -> LinkCodes:
        codes = code_links(index, threads=threads)
        for chunk in codes.chunks:
            chunk[:] = np.random.default_rng(1).integers(0, 255, chunk.shape, dtype=np.uint8)
        return codes

    monkeypatch.setattr(build_vectors, "code_links", misled)
    ways = built(mixture(3_000, 3))
    assert all(way.strategy is not Strategy.CODED_GRAPH for way in ways)


@pytest.mark.usefixtures("cheap")
def test_a_merge_codes_the_extended_graph_anew() -> None:
    vectors = mixture(3_000, 3)
    ways = built(vectors)
    more = np.concatenate([vectors, mixture(600, 4)])
    again = built(more, Old(ways, np.arange(3_000)))
    graph, way = again[0], of_codes(again)
    assert isinstance(graph.index, HnswIndex)
    assert isinstance(way.index, CodedGraphIndex)
    expected = code_links(graph.index, threads=1)
    assert all(np.array_equal(a, b) for a, b in zip(way.index.codes.chunks, expected.chunks, strict=True))
    assert sum(len(chunk) for chunk in way.index.codes.chunks) == 3_600
    without = built(more, Old(ways, np.arange(3_000)), coded_graphs=False)
    assert all(each.strategy is not Strategy.CODED_GRAPH for each in without), "those of the inputs are of other rows"


# --- segments


def segment_of(vectors: Vectors, *, coded_graphs: bool = True) -> tuple[BuiltSegment, Memory]:
    rows = len(vectors)
    offsets = pa.array(np.arange(1, rows + 1, dtype=np.uint64))
    columns = {ID: [str(number) for number in range(rows)], CREATED_OFFSET: offsets, UPDATED_OFFSET: offsets}
    table = pa.table({**columns, EMBEDDING: embedding_array(vectors)})
    made = build_segment(
        table, "l2", segment_id="s", tier=0, prefix="c", threads=2, graph_rows=1_000, coded_graphs=coded_graphs
    )
    return made, Memory({ref.key: block.data for ref, block in made.objects})


def read(made: BuiltSegment, memory: Memory, kinds: tuple[str, ...] = TO_READ) -> Segment:
    return asyncio.run(open_segment(made.ref, "l2", memory, kinds=kinds))


@pytest.mark.usefixtures("cheap")
def test_a_segment_answers_by_them_where_they_are_the_cheapest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "SCAN_ROWS", 100)
    made, memory = segment_of(mixture(3_000, 3))
    segment = read(made, memory)
    assert [way.strategy for way in segment.ways][:2] == [Strategy.GRAPH, Strategy.CODED_GRAPH]
    queries = mixture(100, 99)
    ask = Ask(K, 0.95)
    found, plan = segment.search(queries, ask, allowed=None, threads=1)
    assert plan.strategy is Strategy.CODED_GRAPH
    assert [strategy for strategy, _ in plan.rejected] == [Strategy.GRAPH, Strategy.CLUSTERS, Strategy.SCAN]
    assert plan.recall is not None
    assert plan.recall >= 0.95
    true = search_exact(segment.vectors, "l2", queries, K, allowed=None)
    assert float(recalls_of(found, true, K).mean()) > 0.93
    asked = replace(ask, effort=50)
    assert segment.search(queries, asked, allowed=None, threads=1)[1].strategy is Strategy.GRAPH, (
        "an effort is the graph's"
    )


@pytest.mark.usefixtures("cheap")
def test_who_does_not_know_them_reads_the_rest() -> None:
    """As a reader of an older release does, and a merge."""
    made, memory = segment_of(mixture(3_000, 3))
    old = read(made, memory, tuple(kind for kind in TO_READ if kind != CODED_GRAPH))
    assert Strategy.CODED_GRAPH not in {way.strategy for way in old.ways}
    assert CODED_GRAPH not in TO_MERGE
    blocks = {kind: refs for kind, refs in made.ref.blocks.items() if kind != GRAPH}
    with pytest.raises(Corrupt, match="no graph"):
        asyncio.run(open_segment(replace(made.ref, blocks=blocks), "l2", memory))


@pytest.mark.usefixtures("cheap")
def test_memory_counts_what_was_read_of_the_codes_too() -> None:
    made, memory = segment_of(mixture(3_000, 3))
    segment = read(made, memory)
    codes = sum(ref.size_bytes for ref in made.ref.blocks[CODED_GRAPH])
    segment.vectors.touch(10**9)
    assert segment.vectors.touched_bytes == segment.vectors.size_bytes + codes
