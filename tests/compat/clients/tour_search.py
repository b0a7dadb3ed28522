"""The search API: ranking expressions, filters, groups, pages, columns; dense and sparse."""

from __future__ import annotations

import math
from typing import Any

import pytest
from chromadb import K, Knn, Rrf, Schema, Search
from chromadb.api.types import ReadLevel, SparseVector, SparseVectorIndexConfig
from chromadb.errors import InvalidArgumentError
from chromadb.execution.expression import GroupBy, MaxK, MinK, Val

from conftest import Chroma, done

IDS = ["a", "b", "c", "d", "e", "f"]
VECTORS = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0], [5.0, 0.0]]
DOCUMENTS = ["red fish", "blue fish", "red sky", "blue sky", "green grass", "grey stone"]
METADATAS: list[Any] = [{"kind": kind, "n": n} for n, kind in enumerate(["x", "y", "x", "y", "x", "z"])]


async def filled(chroma: Chroma, **more: Any) -> Any:
    collection = await chroma.create(**more)
    await done(collection.add(ids=IDS, embeddings=VECTORS, documents=DOCUMENTS, metadatas=METADATAS))
    return collection


async def found(collection: Any, search: Search) -> list[str]:
    result = await done(collection.search(search))
    (ids,) = result["ids"]
    return list(ids)


async def test_knn_and_what_is_selected(chroma: Chroma) -> None:
    collection = await filled(chroma)
    search = Search().rank(Knn(query=[0.0, 0.0])).limit(3).select(K.DOCUMENT, K.SCORE, K.EMBEDDING, "n")
    result = await done(collection.search(search))
    assert result["ids"] == [["a", "b", "c"]]
    assert result["documents"] == [DOCUMENTS[:3]]
    assert result["scores"] == [pytest.approx([0.0, 1.0, 4.0])]
    assert result["embeddings"] == [VECTORS[:3]]
    assert result["metadatas"] == [[{"n": 0}, {"n": 1}, {"n": 2}]]
    rows = result.rows()
    assert [(row["id"], row["document"]) for row in rows[0]] == list(zip(IDS[:3], DOCUMENTS[:3], strict=True))


async def test_nothing_is_selected_unless_asked_for(chroma: Chroma) -> None:
    collection = await filled(chroma)
    result = await done(collection.search(Search().rank(Knn(query=[0.0, 0.0])).limit(2)))
    assert result["ids"] == [["a", "b"]]
    assert (result["documents"], result["metadatas"], result["embeddings"]) == ([None], [None], [None])


async def test_filters(chroma: Chroma) -> None:
    collection = await filled(chroma)
    near = Search().rank(Knn(query=[0.0, 0.0])).limit(10)
    assert await found(collection, near.where((K("kind") == "x") & (K("n") > 0))) == ["c", "e"]
    assert await found(collection, near.where((K("kind") == "z") | (K("n") <= 1))) == ["a", "b", "f"]
    assert await found(collection, near.where(K("kind").is_in(["y", "z"]))) == ["b", "d", "f"]
    assert await found(collection, near.where(K("kind").not_in(["y", "z"]))) == ["a", "c", "e"]
    assert await found(collection, near.where(K.DOCUMENT.contains("fish"))) == ["a", "b"]
    assert await found(collection, near.where(K.DOCUMENT.regex("^(red|grey)"))) == ["a", "c", "f"]
    assert await found(collection, near.where(K.ID.is_in(["d", "b"]))) == ["b", "d"]
    assert await found(collection, near.where({"kind": {"$ne": "x"}})) == ["b", "d", "f"]
    assert await found(collection, Search().where(K("n") >= 4)) == ["e", "f"]


async def test_pages(chroma: Chroma) -> None:
    collection = await filled(chroma)
    ranked = Search().rank(Knn(query=[0.0, 0.0]))
    assert await found(collection, ranked.limit(2, offset=2)) == ["c", "d"]
    assert await found(collection, ranked.limit(4, offset=4)) == ["e", "f"]


async def test_arithmetic(chroma: Chroma) -> None:
    collection = await filled(chroma)
    knn = Knn(query=[2.0, 0.0])
    search = Search().rank((knn * 2 + Val(1.0)).max(3.0) - 1).limit(6).select(K.SCORE)
    result = await done(collection.search(search))
    assert dict(zip(result["ids"][0], result["scores"][0], strict=True)) == pytest.approx(
        {"a": 8.0, "b": 2.0, "c": 2.0, "d": 2.0, "e": 8.0, "f": 18.0}
    )
    search = Search().rank((knn + 1).log() / 2).limit(6).select(K.SCORE)
    result = await done(collection.search(search))
    assert result["scores"][0] == pytest.approx([math.log(d + 1) / 2 for d in (0, 1, 1, 4, 4, 9)])
    search = Search().rank(-abs(knn.exp()).min(100.0)).limit(6).select(K.SCORE)
    result = await done(collection.search(search))
    assert result["scores"][0] == pytest.approx([-100.0, -math.exp(4), -math.exp(4), -math.e, -math.e, -1.0], rel=1e-5)


async def test_reciprocal_rank_fusion(chroma: Chroma) -> None:
    collection = await filled(chroma)
    one = Knn(query=[0.0, 0.0], return_rank=True, limit=6)
    other = Knn(query=[5.0, 0.0], return_rank=True, limit=6)
    search = Search().rank(Rrf([one, other], weights=[2.0, 1.0], k=60)).limit(6).select(K.SCORE)
    result = await done(collection.search(search))
    expected = {id_: -2 / (60 + rank) - 1 / (60 + 5 - rank) for rank, id_ in enumerate(IDS)}
    assert dict(zip(result["ids"][0], result["scores"][0], strict=True)) == pytest.approx(expected, rel=1e-5)
    assert result["ids"] == [sorted(expected, key=lambda id_: expected[id_])]


async def test_groups(chroma: Chroma) -> None:
    collection = await filled(chroma)
    ranked = Search().rank(Knn(query=[0.0, 0.0])).limit(10)
    nearest = GroupBy(keys=K("kind"), aggregate=MinK(keys=K.SCORE, k=1))
    assert await found(collection, ranked.group_by(nearest)) == ["a", "b", "f"]
    two = GroupBy(keys=[K("kind")], aggregate=MaxK(keys=[K("n")], k=2))
    assert sorted(await found(collection, ranked.group_by(two))) == ["b", "c", "d", "e", "f"]


async def test_several_searches_at_once(chroma: Chroma) -> None:
    collection = await filled(chroma)
    searches = [
        Search().rank(Knn(query=[0.0, 0.0])).limit(1).select(K.DOCUMENT),
        Search().where(K("kind") == "z").select(K.METADATA),
        Search().rank(Knn(query=[5.0, 0.0])).limit(2).select(K.SCORE),
    ]
    result = await done(collection.search(searches, read_level=ReadLevel.INDEX_AND_WAL))
    assert result["ids"] == [["a"], ["f"], ["f", "e"]]
    assert result["documents"] == [["red fish"], None, None]
    assert result["metadatas"] == [None, [{"kind": "z", "n": 5}], None]


async def test_sparse_vectors(chroma: Chroma) -> None:
    schema = Schema()
    schema.create_index(SparseVectorIndexConfig(), "terms")
    collection = await chroma.create(schema=schema)
    vectors = [SparseVector([1, 5], [1.0, 2.0]), SparseVector([5, 9], [4.0, 1.0]), SparseVector([7], [3.0])]
    metadatas: list[Any] = [{"terms": vector, "n": number} for number, vector in enumerate(vectors)]
    await done(
        collection.add(ids=["a", "b", "c"], embeddings=[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], metadatas=metadatas)
    )
    got = await done(collection.get(ids=["a"]))
    assert got["metadatas"][0]["terms"] == vectors[0]
    query = SparseVector([5, 9], [1.0, 1.0])
    search = Search().rank(Knn(query=query, key="terms")).limit(5).select(K.SCORE)
    result = await done(collection.search(search))
    assert result["ids"][0][:2] == ["b", "a"]
    both = Knn(query=query, key="terms", return_rank=True, default=100), Knn(query=[1.0, 1.0], return_rank=True)
    assert set(await found(collection, Search().rank(Rrf(list(both))).limit(5))) == {"a", "b", "c"}


async def test_searches_that_are_refused(chroma: Chroma) -> None:
    collection = await filled(chroma)
    with pytest.raises(InvalidArgumentError, match="dimension"):
        await done(collection.search(Search().rank(Knn(query=[1.0, 2.0, 3.0])).limit(1)))
