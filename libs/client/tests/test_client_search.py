"""Searches: how users build them, texts that the client embeds, and results; on the oracle."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

import shoal
from libs.client.tests.client_support import FakeApi, Words, client_of
from shoal import GroupBy, Knn, MaxK, MinK, Search, Val, errors, rrf
from shoal._search import Rank
from shoal.aio import AsyncClient, AsyncCollection
from shoal_core.rank_json import parse_rank
from shoal_core.ranking import DenseQuery, Max, Min, SparseQuery, Sum, TextQuery, leaves_of
from shoal_core.records import SPARSE_TYPE

DENSE = Knn([1.0, 2.0])
LEAF = DENSE.to_json()


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
async def client(api: FakeApi, words: Words) -> AsyncIterator[AsyncClient]:
    async with client_of(api, embedding_function=words) as client:
        yield client


BM25 = {"type": "known", "name": "chroma_bm25", "config": {"avg_doc_length": 3.0}}
SPARSE = {
    "bm25": {"source_key": "#document", "embedding_function": BM25},
    "title_bm25": {"source_key": "title", "embedding_function": BM25},
    "splade": {"embedding_function": {"name": "splade"}},
}


@pytest.fixture
async def films(client: AsyncClient) -> AsyncCollection:
    films = await client.create_collection("films", schema={"sparse": SPARSE, "analyzer": {"stop_words": ["a"]}})
    await films.add(
        ids=["jaws", "nemo", "alien", "abyss"],
        embeddings=[[0, 0], [3, 4], [0, 1], [9, 9]],
        documents=["a great shark", "a clown fish", "a fish hunts in deep space", "deep water"],
        metadatas=[
            {"year": 1975, "kind": "fear", "title": "Jaws"},
            {"year": 2003, "kind": "fun"},
            {"year": 1979, "kind": "fear"},
            {"year": 1989},
        ],
        uris=["file:///jaws", None, None, None],
    )
    return films


# --- building


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (DENSE + 1, {"$sum": [LEAF, {"$val": 1}]}),
        (1 + DENSE, {"$sum": [{"$val": 1}, LEAF]}),
        (DENSE + Val(2) + DENSE, {"$sum": [LEAF, {"$val": 2}, LEAF]}),
        (DENSE + (1 + DENSE), {"$sum": [LEAF, {"$sum": [{"$val": 1}, LEAF]}]}),
        (2 * DENSE * 3, {"$mul": [{"$val": 2}, LEAF, {"$val": 3}]}),
        (DENSE * 2 + 1, {"$sum": [{"$mul": [LEAF, {"$val": 2}]}, {"$val": 1}]}),
        (DENSE - 1, {"$sub": {"left": LEAF, "right": {"$val": 1}}}),
        (1 - DENSE, {"$sub": {"left": {"$val": 1}, "right": LEAF}}),
        (DENSE / 2, {"$div": {"left": LEAF, "right": {"$val": 2}}}),
        (2 / DENSE, {"$div": {"left": {"$val": 2}, "right": LEAF}}),
        (-DENSE, {"$mul": [{"$val": -1.0}, LEAF]}),
        (abs(DENSE), {"$abs": LEAF}),
        (DENSE.exp().log(), {"$log": {"$exp": LEAF}}),
        (DENSE.max(1).max(DENSE), {"$max": [LEAF, {"$val": 1}, LEAF]}),
        (DENSE.min(LEAF), {"$min": [LEAF, LEAF]}),
        (sum([DENSE, DENSE]), {"$sum": [{"$val": 0}, LEAF, LEAF]}),
        (np.float32(0.5) * DENSE, {"$mul": [{"$val": 0.5}, LEAF]}),  # type: ignore[operator]
        (np.int64(2) - DENSE, {"$sub": {"left": {"$val": 2}, "right": LEAF}}),  # type: ignore[operator]
        (DENSE + LEAF, {"$sum": [LEAF, LEAF]}),
    ],
)
def test_operators_write_the_json_form(built: Rank, expected: Any) -> None:
    assert built.to_json() == expected
    parse_rank(json.loads(json.dumps(built.to_json(), default=float)))


def test_a_long_chain_is_not_deep() -> None:
    chain: Rank = DENSE
    for _ in range(30):
        chain = chain + 1.0
    total = parse_rank(chain.to_json())
    assert isinstance(total, Sum)
    assert len(total.children) == 31
    assert isinstance(parse_rank(DENSE.max(1).to_json()), Max)
    assert isinstance(parse_rank(DENSE.min(1).to_json()), Min)


def test_building_does_not_change_the_parts() -> None:
    left = DENSE + 1
    _, _ = left + 2, left + 3
    assert left.to_json() == {"$sum": [LEAF, {"$val": 1}]}


@pytest.mark.parametrize("operand", ["x", None, True, [1]])
def test_what_is_no_operand_is_refused(operand: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="expected a rank expression or a number"):
        _ = DENSE + operand


def test_rrf_and_searches_write_the_json_form() -> None:
    ranked = Knn("x", key="#document", limit=5, default=9.0, return_rank=True)
    fused = rrf([ranked, ranked.to_json()], k=10, weights=[2, 1], normalize=True)
    assert fused.to_json() == {"$rrf": {"ranks": [ranked.to_json()] * 2, "k": 10, "weights": [2, 1], "normalize": True}}
    search = Search(
        where={"year": 1},
        ids="a",
        rank=fused,
        group_by=GroupBy("kind", MaxK(["year", "#score"], 2)),
        limit=3,
        offset=1,
        select="#score",
        cursor="c",
    )
    assert search.to_json() == {
        "where": {"year": 1, "query_ids": ["a"]},
        "rank": fused.to_json(),
        "group_by": {"keys": ["kind"], "aggregate": {"$max_k": {"keys": ["year", "#score"], "k": 2}}},
        "limit": {"limit": 3, "offset": 1},
        "select": {"keys": ["#score"]},
        "cursor": "c",
    }
    both = Search(where={"query_ids": 1}, ids=["a"]).to_json()  # a key may be called so
    assert both["where"] == {"$and": [{"query_ids": 1}], "query_ids": ["a"]}
    assert GroupBy(["a"]).to_json() == {"keys": ["a"], "aggregate": {"$min_k": {"keys": ["#score"], "k": 1}}}
    assert MinK("a", 2).to_json() == {"$min_k": {"keys": ["a"], "k": 2}}


# --- searching


async def test_a_search_ranks_filters_and_selects(films: AsyncCollection, api: FakeApi) -> None:
    found = await films.search(Search(where={"year": {"$lt": 2000}}, rank=Knn([0, 0]), limit=2), exact=True)
    assert found.ids == ["jaws", "alien"]
    assert found.documents == ["a great shark", "a fish hunts in deep space"]
    assert found.metadatas is not None
    assert [metadata["year"] for metadata in found.metadatas] == [1975, 1979]
    assert found.scores is not None
    assert found.scores.dtype == np.float64
    assert found.scores.tolist() == [0.0, 1.0]
    assert (found.embeddings, found.uris) == (None, None)
    assert [(record.id, record.score, record.distance) for record in found] == [
        ("jaws", 0.0, None),
        ("alien", 1.0, None),
    ]
    assert found["scores"] is found.scores
    assert found.keys() == ("ids", "documents", "metadatas", "scores")
    assert found.to_arrow().column("score").to_pylist() == [0.0, 1.0]
    assert repr(found).startswith("SearchResult: 2 records at offset 4")
    assert "score" in repr(found)
    with pytest.raises(KeyError):
        found["distances"]
    assert api.seen("search")[-1]["exact"] is True


async def test_single_keys_uris_and_embeddings_are_selected(films: AsyncCollection) -> None:
    found = await films.search(Search(ids=["jaws"], select=["kind", "#uri", "#embedding", "#score"]))
    assert found.metadatas == [{"kind": "fear"}]
    assert found.uris == ["file:///jaws"]
    assert found.embeddings is not None
    assert found.embeddings.tolist() == [[0, 0]]
    assert (found.documents, found.scores) == (None, None), "there is no rank"
    assert found.to_arrow().column("kind").to_pylist() == ["fear"]
    only = await films.search({})
    assert (only.keys(), len(only)) == (("ids",), 4)
    assert (await films.search(Search(ids=["jaws"], select="#uri"))).metadatas is None


async def test_one_search_one_result_several_a_list(films: AsyncCollection) -> None:
    several = await films.search([Search(rank=Knn([0, 0]), limit=1), {"limit": {"limit": 2, "offset": 1}}])
    assert [found.ids for found in several] == [["jaws"], ["nemo", "alien"]]
    assert [found.ids for found in await films.search((Search(ids=["nemo"]),))] == [["nemo"]]


async def test_groups_and_ids(films: AsyncCollection) -> None:
    best = Search(rank=Knn([0, 0]), group_by=GroupBy("kind"))
    assert (await films.search(best)).ids == ["jaws", "nemo", "abyss"]
    newest = Search(rank=Knn([0, 0]), group_by=GroupBy(["kind"], MaxK("year")))
    assert (await films.search(newest)).ids == ["alien", "nemo", "abyss"]
    assert (await films.search(Search(ids=[], rank=Knn([0, 0])))).ids == []
    both = Search(where={"kind": "fear"}, ids=np.array(["nemo", "alien"]), rank=Knn([0, 0]))
    assert (await films.search(both)).ids == ["alien"]
    await films.add(ids=["odd"], embeddings=[[1, 1]], metadatas=[{"query_ids": "x"}])
    assert (await films.search(Search(where={"query_ids": "x"}, ids=["odd", "jaws"]))).ids == ["odd"]


async def test_pages_of_a_search(films: AsyncCollection) -> None:
    first = await films.search(Search(rank=Knn([0, 0]), limit=3))
    await films.delete(["abyss"])
    second = await films.search(Search(rank=Knn([0, 0]), limit=3, cursor=first.cursor))
    assert (second.ids, second.cursor, second.served_at) == (["abyss"], "", first.served_at)


async def test_several_ranks_make_one_score(films: AsyncCollection) -> None:
    near, text = Knn([0, 0], default=50.0), Knn("fish", key="#document", default=1.0)
    found = await films.search(Search(rank=0.1 * near + text))
    assert found.scores is not None
    assert set(found.ids) == {"jaws", "nemo", "alien", "abyss"}
    assert found.scores.tolist() == sorted(found.scores.tolist())
    ranked = [Knn([0, 0], return_rank=True), Knn("fish", key="#document", return_rank=True, default=100)]
    fused = await films.search(Search(rank=rrf(ranked, weights=[1, np.float64(3)]), limit=1))
    assert fused.ids in (["nemo"], ["alien"])
    plain = await films.search({"rank": {"$sum": [ranked[0], {"$val": np.float32(1)}]}, "select": {"keys": ["#score"]}})
    assert plain.scores is not None
    assert plain.scores.tolist() == [1, 2, 3, 4]


# --- texts


async def test_texts_are_embedded_in_one_call(films: AsyncCollection, words: Words, api: FakeApi) -> None:
    words.embedded.clear()
    payload = {"rank": {"$max": [{"$knn": {"query": "d e"}}, {"$knn": {"query": "x", "key": "#document"}}]}}
    await films.search([Search(rank=Knn("abc") + Knn("x y", default=2.0)), payload])
    assert words.embedded == [["abc", "x y", "d e"]]
    first, second = api.seen("search")[-1]["searches"]
    vectors = [leaf.query for search in (first, second) for leaf in leaves_of(search.rank)]
    assert [query.vector.tolist() for query in vectors if isinstance(query, DenseQuery)] == [[3, 1], [3, 2], [3, 2]]
    assert vectors[3] == TextQuery("x")
    assert payload["rank"]["$max"][0] == {"$knn": {"query": "d e"}}, "what was passed stays as it was"


async def test_texts_become_sparse_vectors(films: AsyncCollection, api: FakeApi) -> None:
    found = await films.search(Search(rank=Knn("fishes", key="bm25"), select=["#score"]))
    assert found.ids == ["nemo", "alien", "jaws", "abyss"]
    assert found.scores is not None
    assert found.scores[0] < found.scores[1] < found.scores[2] == found.scores[3] == 1.0
    (leaf,) = leaves_of(api.seen("search")[-1]["searches"][0].rank)
    assert isinstance(leaf.query, SparseQuery)
    assert leaf.query.indices.dtype == np.uint32
    by_hand = {"indices": leaf.query.indices, "values": leaf.query.values}
    assert (await films.search(Search(rank=Knn(by_hand, key="bm25")))).ids == found.ids


@pytest.mark.parametrize(
    ("key", "message"),
    [("splade", "'splade' is not built in"), ("year", "not set; give sparse vectors instead of texts")],
)
async def test_a_text_needs_a_known_function(films: AsyncCollection, api: FakeApi, key: str, message: str) -> None:
    with pytest.raises(errors.FailedPrecondition, match=message) as caught:
        await films.search(Search(rank=Knn("fish", key=key)))
    assert caught.value.field == f"schema.sparse.{key}.embedding_function"
    assert api.seen("search") == []


async def test_a_bad_configuration_of_a_function_is_refused(client: AsyncClient) -> None:
    for config in (3, {"k": "x"}, {"unknown": 1}):
        schema = {"sparse": {"s": {"embedding_function": {"name": "chroma_bm25", "config": config}}}}
        collection = await client.create_collection(f"c{config}", schema=schema)
        with pytest.raises(errors.InvalidArgument):
            await collection.search(Search(rank=Knn("fish", key="s")))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([], "0 values for 1"),
        ([{"indices": [2, 1], "values": [1.0, 1.0]}], "ascend strictly"),
        ([{"indices": [1], "values": [float("nan")]}], "finite"),
        ([{"indices": [1], "values": []}], "as many values"),
    ],
)
async def test_what_a_sparse_function_returns_is_checked(
    films: AsyncCollection, api: FakeApi, monkeypatch: pytest.MonkeyPatch, vectors: list[Any], message: str
) -> None:
    column = SimpleNamespace(vectors=pa.array(vectors, SPARSE_TYPE))
    monkeypatch.setattr(shoal.embedding.Bm25, "encode", lambda self, texts: column)
    sent = len(api.calls)
    with pytest.raises(errors.InvalidArgument, match=message):
        await films.search(Search(rank=Knn("fish", key="bm25")))
    with pytest.raises(errors.InvalidArgument, match=message):
        await films.upsert(ids=["x"], documents=["fish"])
    assert len(api.calls) == sent


async def test_writes_make_the_sparse_vectors_of_their_texts(films: AsyncCollection) -> None:
    got = await films.get(["jaws", "abyss"])
    assert got.metadatas is not None
    assert [sorted(metadata) for metadata in got.metadatas] == [
        ["bm25", "kind", "title", "title_bm25", "year"],
        ["bm25", "year"],
    ]
    before = got.metadatas[1]["bm25"]
    own = {"indices": [7], "values": [0.5]}
    await films.update(
        ids=["jaws", "nemo", "alien", "abyss"],
        documents=["x", "fish", "fish", None],
        metadatas=[{"bm25": own}, {"bm25": None}, None, {"a": 1}],
    )
    changed = (await films.get()).metadatas
    assert changed is not None
    assert changed[0]["bm25"] == own
    assert "bm25" not in changed[1]
    assert len(changed[2]["bm25"]["indices"]) == 1
    assert changed[3]["bm25"] == before


# --- what is refused


@pytest.mark.parametrize(
    ("searches", "field", "message"),
    [
        ([], "searches", "1 to 16"),
        (["x"], "searches[0]", "expected a search, got str"),
        ("x", "searches", "expected searches, got str"),
        (Search(limit=-1), "searches[0].limit.limit", "whole number"),
        (Search(where={"a": {"$oops": 1}}), "searches[0].where.a.$oops", "unknown operator"),
        (Search(rank=Knn([1, 2, 3])), "searches[0].rank.$knn.query", "dimension 3, the collection has 2"),
        ([Search(), Search(rank=Knn([1, 2]) + Knn([1]))], "searches[1].rank.$sum[1].$knn.query", "dimension 1"),
        (Search(rank=Knn([1, 2], limit=0)), "searches[0].rank.$knn.limit", "1 to"),
        (
            Search(rank=Knn({"indices": [2, 1], "values": [1, 1]}, key="s")),
            "searches[0].rank.$knn.query.indices",
            "asc",
        ),
        (Search(rank=rrf([Knn([1, 2])])), "searches[0].rank.$rrf.ranks[0]", "set return_rank"),
        (Search(select=["#oops"]), "searches[0].select.keys", "not a metadata key"),
        (Search(group_by={"keys": ["a"]}), "searches[0].group_by.aggregate", "expected an object"),
        ({"rank": {"$knn": {"query": [1, 2], "key": 3}}}, "searches[0].rank.$knn.key", "expected a string"),
        ({"oops": 1}, "searches[0].oops", "unknown"),
        ([Search(), Search(ids=["a", 2])], "searches[1].ids[1]", "expected a text"),
        (Search(rank=cast(Any, "x")), "searches[0].rank", "expected a rank expression"),
        (Search(select=cast(Any, None)), "searches[0].select", "expected keys"),
        (Search(rank=Knn([1, 2]), group_by=GroupBy(cast(Any, 3))), "searches[0].group_by.keys", "expected keys"),
        (Search(where=cast(Any, [1]), ids="a"), "searches[0].where", "expected an object"),
        (Search(where={"#year": 1}), "searches[0].where.#year", "no such key"),
    ],
)
async def test_bad_searches_never_leave_the_client(
    films: AsyncCollection, api: FakeApi, searches: Any, field: str, message: str
) -> None:
    api.calls.clear()
    with pytest.raises(errors.InvalidArgument, match=message) as caught:
        await films.search(searches)
    assert caught.value.field == field
    assert api.calls == []


async def test_deep_nonsense_is_refused(films: AsyncCollection) -> None:
    deep: dict[str, Any] = {"$knn": {"query": "x"}}
    for _ in range(2000):
        deep = {"$abs": deep}
    with pytest.raises(errors.InvalidArgument, match="nested deeper"):
        await films.search({"rank": deep})


async def test_a_vector_that_does_not_fit_is_the_functions_fault(client: AsyncClient) -> None:
    collection = await client.create_collection("c", dimension=3)
    with pytest.raises(errors.DimensionMismatch, match="'words' makes vectors of dimension 2") as caught:
        await collection.search(Search(rank=Knn("fish")))
    assert caught.value.field == "searches"


async def test_session_of_a_search(films: AsyncCollection, api: FakeApi) -> None:
    written = await films.delete(["jaws"])
    await films.search(Search(), consistency=shoal.session(written))
    assert api.seen("search")[-1]["consistency"].offset == written.token.offset
