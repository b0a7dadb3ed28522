"""Clusters: which lists a search scans, what it measures of them, and how lists are made, merged and stored."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from libs.index.tests.test_index_calibration import mixture
from libs.index.tests.test_index_kernels import column_of, tied, tying
from shoal_core.errors import Corrupt
from shoal_core.schema import VectorConfig
from shoal_index import build_vectors
from shoal_index.build_vectors import Old, built_ways
from shoal_index.planner import Ask, Strategy, Way, plan_segment
from shoal_index.vector.calibration import BY_LOT, Calibration, Curve, Point, recalls_of
from shoal_index.vector.clusters import CODED, NONE, ClusterIndex, Clusters
from shoal_index.vector.clusters_build import build_clusters, extended_clusters
from shoal_index.vector.column import VectorColumn
from shoal_index.vector.engine import SPACES, Mask, Neighbours, Vectors, unit_vectors
from shoal_index.vector.exact import search_exact

ROWS, K = 3_000, 10
WHOLE = 10**6  # rows to measure for each wanted: all that are scanned

Floats = npt.NDArray[np.float32]


def clusters_of(column: VectorColumn, space: str) -> Clusters:
    clusters = build_clusters(column, space, np.ones(column.count, dtype=bool), threads=2)
    clusters.check(column.count, column.dimension, space)
    return clusters


def owners(clusters: Clusters, rows: int) -> npt.NDArray[np.int64]:
    """(rows,) the list of each row, by the lists' members."""
    owner = np.empty(rows, dtype=np.int64)
    used = clusters.members != NONE
    owner[clusters.members[used]] = np.repeat(clusters.list_of_block(), CODED)[used.reshape(-1)]
    return owner


def scanned(clusters: Clusters, space: str, query: Floats, effort: int, allowed: Mask | None, rows: int) -> list[int]:
    """The lists that a search looks at, by the rule in words: the nearest, until as many allowed rows are in them as in so many lists
    of usual size, and one list more for each that had none before the first that had some."""
    asked = unit_vectors(query[None, :])[0] if space == "cosine" else query - clusters.origin
    products = clusters.centroids.astype(np.float64) @ asked
    scores = (clusters.centroids.astype(np.float64) ** 2).sum(axis=1) - 2 * products if space == "l2" else -products
    order = np.argsort(scores, kind="stable").tolist()
    counted = np.ones(rows, dtype=bool) if allowed is None else allowed
    members = np.bincount(owners(clusters, rows)[counted], minlength=len(order))
    usual = rows / len(order)
    wanted, seen, found = effort * usual, 0, []
    for number in order:
        if seen >= wanted:
            break
        found.append(number)
        if seen == 0 and members[number] == 0:
            wanted += usual
        seen += int(members[number])
    return found


def some(dimension: int, rows: int = ROWS) -> tuple[Vectors, Vectors]:
    random = np.random.default_rng(dimension)
    middles = random.standard_normal((20, dimension))
    vectors = middles[random.integers(20, size=rows)] + 0.5 * random.standard_normal((rows, dimension))
    queries = middles[random.integers(20, size=13)] + 0.5 * random.standard_normal((13, dimension))
    return vectors.astype(np.float32), queries.astype(np.float32)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dimension", [1, 2, 7, 33, 100, 130, 384])
def test_all_lists_with_all_measured_is_an_exact_search(dimension: int, space: str, level: str) -> None:
    vectors, queries = some(dimension, 700)
    column = column_of(vectors)
    index = ClusterIndex(clusters_of(column, space), column, space, WHOLE)
    lists = len(index.clusters.centroids)
    true = search_exact(column, space, queries, K, allowed=None)
    for asked, of in ((queries, slice(None)), (queries[:1], slice(0, K))):
        found = index.search(asked, K, effort=lists, allowed=None, threads=1)
        assert found.rows.tolist() == true.rows[of].tolist()
        assert found.distances.tolist() == true.distances[of].tolist()


@pytest.mark.parametrize("space", SPACES)
def test_all_lists_with_all_measured_order_equal_distances_by_their_ties(space: str, level: str) -> None:
    for vectors, queries in tying():
        column = tied(vectors)
        index = ClusterIndex(clusters_of(column, space), column, space, WHOLE)
        true = search_exact(column, space, queries, K, allowed=None)
        found = index.search(queries, K, effort=len(index.clusters.centroids), allowed=None, threads=1)
        assert found.distances.tolist() == true.distances.tolist()
        assert found.rows.tolist() == true.rows.tolist()


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("queries", [1, 13])
@pytest.mark.parametrize("kind", ["all", "random", "far", "few"])
def test_the_lists_of_the_rule_are_scanned_and_no_others(kind: str, queries: int, space: str, level: str) -> None:
    """With all measured, the answer is that of an exact search of the allowed rows in those lists."""
    vectors, asked = some(24)
    column = column_of(vectors)
    clusters = clusters_of(column, space)
    index = ClusterIndex(clusters, column, space, WHOLE)
    owner = owners(clusters, ROWS)
    random = np.random.default_rng(5)
    far = ((vectors - asked[0]) ** 2).sum(axis=1)
    allowed: Mask | None = {
        "all": None,
        "random": random.random(ROWS) < 0.4,
        "far": far > np.quantile(far, 0.6),
        "few": random.random(ROWS) < 0.01,
    }[kind]
    for effort in (1, 3, 20):
        found, compared = index.search_counting(asked[:queries], K, effort=effort, allowed=allowed, threads=2)
        assert found.counts.tolist() == [K] * queries
        for number in range(queries):
            lists = scanned(clusters, space, asked[number], effort, allowed, ROWS)
            within = np.isin(owner, lists) & (True if allowed is None else allowed)
            if np.count_nonzero(within) < K:
                continue  # more lists are scanned: see below
            true = search_exact(column, space, asked[number : number + 1], K, allowed=within)
            assert found.rows[number * K : (number + 1) * K].tolist() == true.rows.tolist()
            blocks = np.flatnonzero(
                np.isin(clusters.list_of_block(), lists)
            )  # those without allowed rows are passed over
            filled = np.append(within, False)[np.minimum(clusters.members[blocks], ROWS)].any(axis=1)
            assert compared[number] == np.count_nonzero(filled) * CODED


def test_searches_of_one_mask_share_what_they_find_out(level: str) -> None:
    """Whatever was looked at before, and by how many threads: the answers are those of an index that has seen nothing yet."""
    vectors, asked = some(24)
    column = column_of(vectors)
    clusters = clusters_of(column, "l2")
    index = ClusterIndex(clusters, column, "l2", 4)
    random = np.random.default_rng(8)
    masks: list[Mask | None] = [None, random.random(ROWS) < 0.3, vectors[:, 0] > 0.5]
    for mask in masks[1:]:
        assert mask is not None
        mask.flags.writeable = False
    for step in range(24):
        mask = masks[step % 3]
        queries = np.repeat(asked, 30, axis=0) if step % 4 == 3 else asked[step % 13 :][: 1 + step % 5]
        effort = int(random.integers(1, 40))
        found, compared = index.search_counting(queries, K, effort=effort, allowed=mask, threads=2)
        unseen = ClusterIndex(clusters, column, "l2", 4)
        true, expected = unseen.search_counting(queries, K, effort=effort, allowed=mask, threads=1)
        assert found.rows.tolist() == true.rows.tolist()
        assert compared.tolist() == expected.tolist()
    assert index.kept_bytes == index.refining(2).kept_bytes == 3 * 4 * (len(clusters.centroids) + len(clusters.members))


def test_threads_may_look_at_the_same_lists_for_the_first_time(level: str) -> None:
    vectors, asked = some(24)
    column = column_of(vectors)
    clusters = clusters_of(column, "l2")
    queries = np.repeat(asked, 10, axis=0)
    random = np.random.default_rng(8)
    with ThreadPoolExecutor(4) as pool:
        for share in (0.02, 0.3, 0.9):
            mask: Mask = random.random(ROWS) < share
            mask.flags.writeable = False
            index = ClusterIndex(clusters, column, "l2", 4)
            search = partial(index.search, k=K, effort=12, allowed=mask, threads=2)
            found = [part.rows.tolist() for part in pool.map(search, [queries] * 12)]
            assert found == [found[0]] * 12
            assert mask[found[0]].all()


@pytest.mark.parametrize("kind", ["counts", "bits"])
def test_what_is_known_of_other_lists_is_refused(kind: str) -> None:
    vectors, asked = some(24)
    column = column_of(vectors)
    index = ClusterIndex(clusters_of(column, "l2"), column, "l2", 4)
    setattr(index._all, kind, getattr(index._all, kind)[1:])
    with pytest.raises(ValueError, match="expected an array of"):
        index.search(asked, K, effort=2, allowed=None, threads=1)


@pytest.mark.parametrize("space", SPACES)
def test_queries_as_far_from_every_list(space: str, level: str) -> None:
    """Equal scores of lists, by their numbers then (there are none for l2), and scores that float32 does not hold."""
    vectors, asked = some(24)
    column = column_of(vectors)
    clusters = clusters_of(column, space)
    index = ClusterIndex(clusters, column, space, WHOLE)
    alike = np.zeros((1, 24), dtype=np.float32) if space != "l2" else clusters.origin[None, :]
    beyond = np.where(asked[:5] > 0, np.float32(3e38), np.float32(-3e38))
    for queries in (alike, np.repeat(alike, 13, axis=0), beyond[:1], np.concatenate([beyond, alike, asked])):
        for effort in (1, 40):
            assert index.search(queries, K, effort=effort, allowed=None, threads=1).counts.tolist() == [K] * len(
                queries
            )
    found, compared = index.search_counting(alike, K, effort=40, allowed=None, threads=1)
    lists = scanned(clusters, space, alike[0], 40, None, ROWS)
    true = search_exact(column, space, alike, K, allowed=np.isin(owners(clusters, ROWS), lists))
    assert found.rows.tolist() == true.rows.tolist()
    assert compared.tolist() == [np.diff(clusters.starts)[lists].sum() * CODED]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("width", [24, 200])
def test_codes_tell_what_is_near(width: int, space: str, level: str) -> None:
    """By the codes as they are defined, decoded in numpy: measuring few of the best loses hardly more than the codes themselves do."""
    vectors, queries = some(width)
    column = column_of(vectors)
    clusters = clusters_of(column, space)
    owner = owners(clusters, ROWS)
    codes = codes_of(clusters, ROWS)
    pieces = clusters.codebook[np.arange(len(clusters.codebook)), :, codes].reshape(len(codes), -1)[:, :width]
    decoded = clusters.centroids[owner].astype(np.float64) + pieces
    if clusters.biases is not None:
        block, slot = np.divmod(np.flatnonzero(clusters.members.reshape(-1) != NONE), CODED)
        lengths = (decoded[clusters.members[block, slot]] ** 2).sum(axis=1)
        np.testing.assert_allclose(clusters.biases[block, slot], lengths, rtol=1e-4)
    shown = unit_vectors(vectors) if space == "cosine" else vectors - clusters.origin
    assert ((shown - decoded) ** 2).sum() < 0.6 * ((shown - clusters.centroids[owner]) ** 2).sum()
    asked = unit_vectors(queries) if space == "cosine" else queries - clusters.origin
    scores = -asked.astype(np.float64) @ decoded.T
    if space == "l2":
        scores = (decoded**2).sum(axis=1) + 2 * scores
    true = search_exact(column, space, queries, K, allowed=None)
    refine = 6
    best = np.argsort(scores, axis=1)[:, : refine * K]
    expected = np.mean([np.isin(true.rows[i * K : (i + 1) * K], best[i]).mean() for i in range(len(queries))])
    index = ClusterIndex(clusters, column, space, refine)
    found = index.search(queries, K, effort=len(clusters.centroids), allowed=None, threads=1)
    assert float(recalls_of(found, true, K).mean()) >= expected - 0.04
    assert expected > 0.7


@pytest.mark.parametrize("space", SPACES)
def test_never_fewer_than_k_when_k_are_allowed(space: str, level: str) -> None:
    vectors, queries = some(16)
    column = column_of(vectors)
    index = ClusterIndex(clusters_of(column, space), column, space, 1)
    random = np.random.default_rng(3)
    for count in (0, 4, K, 37):
        allowed = np.zeros(ROWS, dtype=bool)
        allowed[random.permutation(ROWS)[:count]] = True
        for asked in (queries, queries[:1]):
            found = index.search(asked, K, effort=1, allowed=allowed, threads=2)
            assert found.counts.tolist() == [min(K, count)] * len(asked)
            assert allowed[found.rows].all()
    every = index.search(queries[:2], ROWS + 5, effort=1, allowed=None, threads=1)
    assert [sorted(part) for part in every.rows.reshape(2, ROWS).tolist()] == [list(range(ROWS))] * 2


@pytest.mark.parametrize("space", SPACES)
def test_identical_vectors_are_all_there(space: str, level: str) -> None:
    """Two thirds are alike, and so in one list, far longer than the others; equal ones come in order of their ties."""
    vectors, queries = some(12)
    vectors[1_000:] = queries[0]
    vectors[5] = 0.0
    column = column_of(vectors)
    index = ClusterIndex(clusters_of(column, space), column, space, 1)
    found = index.search(queries[:1], 2_000, effort=1, allowed=None, threads=1)
    true = search_exact(column, space, queries[:1], 2_000, allowed=None)
    assert found.counts.tolist() == [2_000]
    assert np.mean(np.isin(found.rows, true.rows)) > 0.98
    lists = len(index.clusters.centroids)
    whole = index.refining(WHOLE).search(queries[:1], 2_000, effort=lists, allowed=None, threads=1)
    assert whole.rows.tolist() == true.rows.tolist()


def test_lists_are_read_as_they_were_written() -> None:
    vectors, _ = some(24)
    for space in SPACES:
        clusters = clusters_of(column_of(vectors), space)
        again = Clusters.of_tables(clusters.to_tables(), ROWS, 24, space)
        for name in ("origin", "centroids", "codebook", "starts", "members", "codes", "biases"):
            one, other = getattr(clusters, name), getattr(again, name)
            assert (one is None and other is None) or np.array_equal(one, other)
        assert again.size_bytes == clusters.size_bytes


def test_lists_that_do_not_fit_are_corrupt() -> None:
    """Whatever a kernel would follow into nowhere."""
    vectors, _ = some(24)
    clusters = clusters_of(column_of(vectors), "l2")
    assert clusters.biases is not None
    twice, beyond, more = clusters.members.copy(), clusters.members.copy(), clusters.starts.copy()
    twice[0, 0] = twice[0, 1]
    beyond[0, 0] = ROWS
    more[-1] += 1
    back = clusters.starts.copy()
    back[1], back[2] = back[2], back[1]
    early = clusters.members.copy()
    partial = int(np.flatnonzero((early == NONE).any(axis=1))[0])
    early[partial] = early[partial][::-1]
    broken: list[dict[str, object]] = [{"members": twice}, {"members": beyond}, {"members": early}, {"biases": None}]
    broken += [{"starts": more}, {"starts": back}, {"starts": clusters.starts.astype(np.int32)}]
    broken += [{"centroids": clusters.centroids[:-1]}, {"codes": clusters.codes.astype(np.uint32)}]
    broken += [{"codes": clusters.codes[:, :-4]}, {"origin": clusters.origin[:-1]}]
    for parts in broken:
        with pytest.raises(Corrupt):
            Clusters.of_tables(replace(clusters, **parts).to_tables(), ROWS, 24, "l2")  # type: ignore[arg-type]
    for rows, dimension, space in ((ROWS + 1, 24, "l2"), (ROWS, 23, "l2"), (ROWS, 24, "ip")):
        with pytest.raises(Corrupt):
            Clusters.of_tables(clusters.to_tables(), rows, dimension, space)
    with pytest.raises(Corrupt):
        Clusters.of_tables(clusters.to_tables()[:3], ROWS, 24, "l2")


@pytest.mark.parametrize("offset", [100.0, 1000.0])
def test_codes_do_not_suffer_from_a_far_origin(offset: float) -> None:
    vectors, queries = some(24)
    column = column_of(vectors + np.float32(offset))
    index = ClusterIndex(clusters_of(column, "l2"), column, "l2", 8)
    asked = queries + np.float32(offset)
    true = search_exact(column, "l2", asked, K, allowed=None)
    found = index.search(asked, K, effort=10**6, allowed=None, threads=1)
    assert float(recalls_of(found, true, K).mean()) > 0.97


@pytest.mark.parametrize("space", SPACES)
def test_lists_are_filled_up_under_one_codebook(space: str) -> None:
    """Codes of rows that stay are kept, those of others are made; what is gone is in no list."""
    vectors, queries = some(24)
    clusters = clusters_of(column_of(vectors), space)
    random = np.random.default_rng(1)
    kept = np.sort(random.permutation(ROWS)[:2_000])
    new_row = np.full(ROWS, -1, dtype=np.int64)
    order = random.permutation(2_600)
    new_row[kept] = order[:2_000]
    following = np.empty((2_600, 24), dtype=np.float32)
    following[order[:2_000]] = vectors[kept]
    following[order[2_000:]] = some(24, 600)[0] + np.float32(0.1)
    column = column_of(following)
    every = np.ones(2_600, dtype=bool)
    extended = extended_clusters(column, space, every, clusters, new_row, threads=2)
    extended.check(2_600, 24, space)
    before = clusters.centroids[owners(clusters, ROWS)[kept]]
    after = extended.centroids[owners(extended, 2_600)[order[:2_000]]]
    stayed = (before == after).all(axis=1)
    assert np.mean(stayed) > 0.8, "but for lists that are too short by now"
    there, here = codes_of(clusters, ROWS)[kept], codes_of(extended, 2_600)[order[:2_000]]
    assert np.array_equal(here[stayed], there[stayed])
    anew = extended_clusters(column, space, every, clusters, np.full(ROWS, -1), threads=2)
    for name in ("members", "codes", "biases"):
        one, other = getattr(extended, name), getattr(anew, name)
        assert (one is None and other is None) or np.array_equal(one, other), name
    true = search_exact(column, space, queries, K, allowed=None)
    found = ClusterIndex(extended, column, space, 8).search(queries, K, effort=1_000, allowed=None, threads=1)
    assert float(recalls_of(found, true, K).mean()) > 0.95


def test_lists_that_grew_too_long_are_split() -> None:
    """Sixteen times as many rows: lists are as many and as long as lists built anew would be, but for rows that are alike."""
    vectors, queries = some(24, 12_000)
    vectors[11_000:] = vectors[5]
    few = column_of(vectors[:750])
    clusters = clusters_of(few, "l2")
    column = column_of(vectors)
    grown = extended_clusters(column, "l2", np.ones(12_000, dtype=bool), clusters, np.arange(750), threads=2)
    grown.check(12_000, 24, "l2")
    sizes = np.bincount(owners(grown, 12_000), minlength=len(grown.centroids))
    usual = np.sqrt(12_000) / 3
    assert np.sort(sizes)[-2] <= 8 * usual, "lists that were split are not split again"
    assert np.mean(sizes > 4 * usual) < 0.02
    assert 200 < len(grown.centroids) < 500 > len(clusters.centroids)
    assert len(set(owners(grown, 12_000)[11_000:].tolist())) == 1
    assert np.array_equal(grown.codebook, clusters.codebook)
    true = search_exact(column, "l2", queries, K, allowed=None)
    found = ClusterIndex(grown, column, "l2", 16).search(queries, K, effort=60, allowed=None, threads=1)
    assert float(recalls_of(found, true, K).mean()) > 0.95


def codes_of(clusters: Clusters, rows: int) -> npt.NDArray[np.uint8]:
    """(rows, pieces) the code of each row."""
    block, slot = np.divmod(np.flatnonzero(clusters.members.reshape(-1) != NONE), CODED)
    packed = clusters.codes[block, :, slot % 16]
    found = np.empty((rows, packed.shape[1]), dtype=np.uint8)
    found[clusters.members[block, slot]] = np.where((slot < 16)[:, None], packed & 15, packed >> 4)
    return found


def lists_among(ways: list[Way]) -> list[Way]:
    return [way for way in ways if way.strategy is Strategy.CLUSTERS]


def built(vectors: Vectors, *old: Old) -> list[Way]:
    return built_ways(vectors, np.arange(len(vectors), dtype=np.uint64), "l2", VectorConfig(), threads=2, old=old)


def test_a_merge_keeps_the_codebook_until_it_has_drifted(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = mixture(3_000, 3)
    ways = built(vectors)
    first = lists_among(ways)[0]
    assert isinstance(first.index, ClusterIndex)
    assert first.calibration is not None
    more = np.concatenate([vectors, mixture(600, 4)])
    again = lists_among(built(more, Old(ways, np.arange(3_000))))
    assert again
    for way in again:
        assert isinstance(way.index, ClusterIndex)
        assert way.calibration is not None
        assert np.array_equal(way.index.clusters.codebook, first.index.clusters.codebook)
        assert way.calibration.reference == first.calibration.reference
    random = np.random.default_rng(9)
    other = (10 * random.standard_normal((2_900, 32))).astype(np.float32)
    drifted = lists_among(built(np.concatenate([vectors, other]), Old(ways, np.arange(3_000))))
    assert isinstance(drifted[0].index, ClusterIndex)
    assert not np.array_equal(drifted[0].index.clusters.codebook, first.index.clusters.codebook), (
        "it was made for other vectors"
    )
    monkeypatch.setattr(build_vectors, "_DRIFT", 0.01)
    anew = lists_among(built(more, Old(ways, np.arange(3_000))))
    assert isinstance(anew[0].index, ClusterIndex)
    assert not np.array_equal(anew[0].index.clusters.codebook, first.index.clusters.codebook)


def test_the_cheapest_way_is_taken() -> None:
    """Lists cost less than the walk where many queries share them; each strategy that is not taken says what it would have cost."""
    column = column_of(some(32, 700)[0])
    index = ClusterIndex(clusters_of(column, "l2"), column, "l2")

    def curve(refine: int, recalls: tuple[float, ...], compared: float) -> Calibration:
        points = tuple(Point(8 * 2**i, recall, 0.0, compared * 2**i) for i, recall in enumerate(recalls))
        return Calibration("clusters", 256, (Curve(10, 1.0, points),), refine=refine)

    ways = [
        Way(index.refining(4), curve(4, (0.9, 0.96), 2_000.0)),
        Way(index.refining(64), curve(64, (0.92, 0.97, 0.995), 2_000.0)),
    ]
    plan = plan_segment(Ask(10, 0.95), rows=10**6, dimension=32, allowed=10**6, ways=ways)
    assert (plan.strategy, plan.way, plan.compared, plan.approximate) == (Strategy.CLUSTERS, 0, 40, True)
    assert [strategy for strategy, _ in plan.rejected] == [Strategy.SCAN]
    more = plan_segment(Ask(10, 0.99), rows=10**6, dimension=32, allowed=10**6, ways=ways)
    assert (more.way, more.compared) == (1, 640)
    beyond = plan_segment(Ask(10, 0.999), rows=10**6, dimension=32, allowed=10**6, ways=ways)
    assert (beyond.strategy, beyond.approximate, beyond.compared) == (Strategy.SCAN, False, 10**6)
    assert "no effort" in beyond.rejected[0][1]
    few = plan_segment(Ask(10, 0.99), rows=1_500, dimension=32, allowed=1_500, ways=ways)
    assert few.strategy is Strategy.SCAN
    one = plan_segment(Ask(1, 0.95), rows=10**6, dimension=32, allowed=10**6, ways=ways)
    assert one.compared == 40, "as many are measured as for the k of the curve"


def test_rows_chosen_by_lot_are_told_from_rows_of_a_kind() -> None:
    vectors, _ = some(24, 20_000)
    column = column_of(vectors)
    clusters = clusters_of(column, "l2")
    index = ClusterIndex(clusters, column, "l2")
    random = np.random.default_rng(4)
    far = ((vectors - vectors[3]) ** 2).sum(axis=1)
    for share in (0.02, 0.1, 0.5, 0.98):
        by_lot = [index.clumping(random.random(20_000) < share) for _ in range(20)]
        assert min(by_lot) > 0.5
        assert max(by_lot) < 1.6
        assert index.clumping(far <= np.quantile(far, share)) > 2.5
        lists = np.isin(owners(clusters, 20_000), random.permutation(424)[: round(share * 424)])
        assert index.clumping(lists) > 2.5
    assert index.clumping(np.ones(20_000, dtype=bool)) == np.inf
    few = column_of(vectors[:600])
    assert ClusterIndex(clusters_of(few, "l2"), few, "l2").clumping(random.random(600) < 0.5) == np.inf, (
        "too few to tell"
    )


def test_less_clumped_filters_need_less() -> None:
    def curve(share: float, recalls: tuple[float, ...], clumping: float = math.inf) -> Curve:
        points = tuple(Point(8 * 2**i, recall, 0.0, 1_000.0 * 2**i) for i, recall in enumerate(recalls))
        return Curve(10, share, points, clumping)

    hard, easier, by_lot = (
        curve(0.2, (0.6, 0.7, 0.8, 0.95)),
        curve(0.2, (0.6, 0.8, 0.95), 5.0),
        curve(0.2, (0.8, 0.95), BY_LOT),
    )
    known = Calibration("clusters", 256, (curve(1.0, (0.95,)), hard, easier, by_lot))
    clumping = (math.inf, 5.1, 5.0, 1.7, BY_LOT, 0.9)
    found = [known.least(10, 0.2, 0.95, clumping=each) for each in clumping]
    assert [point and point.effort for point in found] == [64, 64, 32, 32, 16, 16]
    assert known.least(10, 1.0, 0.95, clumping=1.0) == known.least(10, 1.0, 0.95)
    assert known.at(10, 0.2, 16) == hard.points[1]
    stored = known.to_json()
    assert Calibration.of_json(stored) == known


def test_readers_and_writers_that_know_but_of_two_kinds() -> None:
    """They tell `scattered` from all else, and take the last curve there is beyond the largest k."""
    point = (Point(8, 0.9, 0.0, 1.0),)
    known = Calibration(
        "clusters", 256, (Curve(10, 0.2, point), Curve(10, 0.2, point, 5.0), Curve(10, 0.2, point, BY_LOT))
    )
    raw = json.loads(known.to_json())
    assert [curve["scattered"] for curve in raw["curves"]] == [False, True, True], (
        "one curve for all that is not by lot"
    )
    assert [curve.get("clumping") for curve in raw["curves"]] == [None, 5.0, BY_LOT]
    raw["curves"] = [{key: of[key] for key in of if key != "clumping"} for of in (raw["curves"][0], raw["curves"][2])]
    assert [curve.clumping for curve in Calibration.of_json(json.dumps(raw).encode()).curves] == [math.inf, BY_LOT]


def test_what_a_larger_share_does_not_reach_is_not_promised() -> None:
    points = tuple(Point(8 * 2**i, recall, 0.0, 1_000.0) for i, recall in enumerate((0.7, 0.8, 0.9)))
    known = Calibration("clusters", 256, (Curve(10, 0.5, points[:2]), Curve(10, 0.2, points)))
    assert known.least(10, 0.3, 0.9) is None
    assert known.least(10, 0.21, 0.9) == known.least(10, 0.2, 0.9) == points[2]
    assert known.least(10, 0.3, 0.8) is not None


def test_nothing_found_of_no_queries() -> None:
    column = column_of(some(8, 700)[0])
    index = ClusterIndex(clusters_of(column, "l2"), column, "l2")
    found: Neighbours = index.search(np.empty((0, 8), np.float32), K, effort=3, allowed=None, threads=2)
    assert found.rows.tolist() == found.counts.tolist() == []
