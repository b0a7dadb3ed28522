"""Writes and reads of records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chromadb.utils.batch_utils import create_batches
from letters import Letters, letters_of

from conftest import Chroma, done

IDS = ["a", "b", "c", "d", "e"]
VECTORS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [2.0, 2.0, 2.0]]
DOCUMENTS = ["red fish", "blue fish", "Blue sky 42", "green grass", "red sky at night"]
METADATAS: list[Any] = [
    {"n": 1, "color": "red", "warm": True, "tags": ["water", "swims"]},
    {"n": 2, "color": "blue", "warm": False, "weight": 0.5, "tags": ["water"]},
    {"n": 3, "color": "blue", "weight": 1.5, "sizes": [1, 2]},
    {"n": 4, "color": "green", "flags": [True, False], "ratios": [0.25, 0.75]},
    {"color": "red", "weight": 2.5},
]
# filters, and the ids of what they match
WHERE: list[tuple[Any, str]] = [
    ({"color": "blue"}, "bc"),
    ({"color": {"$eq": "red"}}, "ae"),
    ({"color": {"$ne": "red"}}, "bcd"),
    ({"n": {"$ne": 1}}, "bcde"),
    ({"n": {"$gt": 2}}, "cd"),
    ({"n": {"$gte": 2}}, "bcd"),
    ({"n": {"$lt": 2}}, "a"),
    ({"n": {"$lte": 2}}, "ab"),
    ({"weight": {"$gt": 0.5}}, "ce"),
    ({"warm": True}, "a"),
    ({"warm": {"$ne": True}}, "bcde"),
    ({"color": {"$in": ["green", "blue"]}}, "bcd"),
    ({"color": {"$nin": ["green", "blue"]}}, "ae"),
    ({"n": {"$in": [1, 4, 9]}}, "ad"),
    ({"n": {"$nin": [1, 4, 9]}}, "bce"),
    ({"weight": {"$in": [0.5, 2.5]}}, "be"),
    ({"warm": {"$in": [True, False]}}, "ab"),
    ({"tags": {"$contains": "swims"}}, "a"),
    ({"tags": {"$not_contains": "swims"}}, "bcde"),
    ({"sizes": {"$contains": 2}}, "c"),
    ({"ratios": {"$contains": 0.75}}, "d"),
    ({"flags": {"$contains": False}}, "d"),
    ({"$and": [{"color": "blue"}, {"n": {"$gt": 2}}]}, "c"),
    ({"$or": [{"color": "green"}, {"n": {"$lt": 2}}]}, "ad"),
    ({"$or": [{"$and": [{"color": "red"}, {"n": 1}]}, {"$and": [{"color": "blue"}, {"weight": 1.5}]}]}, "ac"),
    ({"absent": {"$ne": 1}}, "abcde"),
    ({"absent": 1}, ""),
]
WHERE_DOCUMENT: list[tuple[Any, str]] = [
    ({"$contains": "fish"}, "ab"),
    ({"$contains": "Blue"}, "c"),
    ({"$not_contains": "fish"}, "cde"),
    ({"$regex": "^(red|blue) fish$"}, "ab"),
    ({"$regex": r"\d+"}, "c"),
    ({"$not_regex": "sky"}, "abd"),
    ({"$and": [{"$contains": "red"}, {"$contains": "sky"}]}, "e"),
    ({"$or": [{"$contains": "grass"}, {"$regex": "(?i)BLUE"}]}, "bcd"),
]


async def filled(chroma: Chroma) -> Any:
    collection = await chroma.create()
    await done(collection.add(ids=IDS, embeddings=VECTORS, documents=DOCUMENTS, metadatas=METADATAS))
    return collection


async def test_add_and_get_everything(chroma: Chroma) -> None:
    collection = await filled(chroma)
    assert await done(collection.count()) == 5
    got = await done(collection.get(include=["embeddings", "documents", "metadatas", "uris"]))
    assert (got["ids"], got["documents"], got["metadatas"]) == (IDS, DOCUMENTS, METADATAS)
    assert got["uris"] == [None] * 5
    np.testing.assert_array_equal(got["embeddings"], np.array(VECTORS))
    plain = await done(collection.get())
    assert (plain["embeddings"], plain["uris"], plain["data"]) == (None, None, None)
    assert set(plain["included"]) == {"metadatas", "documents"}


async def test_add_again_changes_nothing(chroma: Chroma) -> None:
    collection = await filled(chroma)
    await done(collection.add(ids=["a", "f"], embeddings=[[9.0, 9.0, 9.0], [8.0, 8.0, 8.0]], documents=["x", "y"]))
    got = await done(collection.get(ids=["a", "f"], include=["documents", "embeddings"]))
    assert got["documents"] == ["red fish", "y"]
    np.testing.assert_array_equal(got["embeddings"], [[1.0, 0.0, 0.0], [8.0, 8.0, 8.0]])


async def test_add_without_documents_or_metadatas(chroma: Chroma) -> None:
    collection = await chroma.create()
    await done(collection.add(ids="one", embeddings=[1.0, 2.0]))
    await done(collection.add(ids=["two"], embeddings=np.array([[3.0, 4.0]], dtype=np.float32), uris=["s3://b/k"]))
    got = await done(collection.get(include=["documents", "metadatas", "uris"]))
    assert got["ids"] == ["one", "two"]
    assert got["documents"] == [None, None]
    assert got["metadatas"] == [None, None]
    assert got["uris"] == [None, "s3://b/k"]


async def test_embeddings_keep_all_their_bits(chroma: Chroma) -> None:
    collection = await chroma.create()
    vectors = np.random.default_rng(5).normal(size=(50, 17)).astype(np.float32)
    await done(collection.add(ids=[f"{n:02}" for n in range(50)], embeddings=vectors))
    got = await done(collection.get(include=["embeddings"]))
    np.testing.assert_array_equal(got["embeddings"].astype(np.float32), vectors)


async def test_where(chroma: Chroma, subtests: pytest.Subtests) -> None:
    collection = await filled(chroma)
    for where, expected in WHERE:
        with subtests.test(str(where)):
            assert "".join((await done(collection.get(where=where)))["ids"]) == expected
            found = await done(collection.query(query_embeddings=[[1.0, 1.0, 1.0]], where=where, n_results=10))
            assert sorted(found["ids"][0]) == list(expected)


async def test_where_document(chroma: Chroma, subtests: pytest.Subtests) -> None:
    collection = await filled(chroma)
    for where_document, expected in WHERE_DOCUMENT:
        with subtests.test(str(where_document)):
            got = await done(collection.get(where_document=where_document))
            assert "".join(got["ids"]) == expected


async def test_where_and_where_document_and_ids_together(chroma: Chroma) -> None:
    collection = await filled(chroma)
    got = await done(collection.get(where={"color": "red"}, where_document={"$contains": "sky"}))
    assert got["ids"] == ["e"]
    got = await done(collection.get(ids=["e", "a", "zzz"], where={"color": "red"}))
    assert got["ids"] == ["a", "e"]
    found = await done(
        collection.query(
            query_embeddings=[[1.0, 0.0, 0.0]],
            ids=["b", "c", "e"],
            where={"weight": {"$gte": 0.5}},
            where_document={"$not_contains": "fish"},
        )
    )
    assert found["ids"] == [["c", "e"]]


async def test_get_pages_and_peek(chroma: Chroma) -> None:
    collection = await filled(chroma)
    pages = [(await done(collection.get(limit=2, offset=offset)))["ids"] for offset in (0, 2, 4, 6)]
    assert pages == [["a", "b"], ["c", "d"], ["e"], []]
    peeked = await done(collection.peek(2))
    assert peeked["ids"] == ["a", "b"]
    assert len(peeked["embeddings"]) == 2
    assert peeked["documents"] == DOCUMENTS[:2]


async def test_query_several_vectors(chroma: Chroma) -> None:
    collection = await filled(chroma)
    found = await done(
        collection.query(
            query_embeddings=[[1.0, 0.1, 0.0], [0.0, 0.0, 3.0]],
            n_results=2,
            include=["documents", "metadatas", "distances", "embeddings"],
        )
    )
    assert found["ids"] == [["a", "d"], ["c", "e"]]
    assert found["distances"][0] == pytest.approx([0.01, 0.81], abs=1e-5)
    assert found["distances"][1] == pytest.approx([4.0, 9.0], abs=1e-5)
    assert found["documents"] == [["red fish", "green grass"], ["Blue sky 42", "red sky at night"]]
    assert found["metadatas"][0][0] == METADATAS[0]
    np.testing.assert_array_equal(found["embeddings"][1], [[0.0, 0.0, 1.0], [2.0, 2.0, 2.0]])


async def test_query_for_more_than_there_is(chroma: Chroma) -> None:
    collection = await filled(chroma)
    found = await done(collection.query(query_embeddings=[[1.0, 0.0, 0.0]], n_results=100, include=[]))
    assert len(found["ids"][0]) == 5
    assert (found["documents"], found["metadatas"], found["distances"], found["embeddings"]) == (None,) * 4
    empty = await chroma.create("empty")
    found = await done(empty.query(query_embeddings=[[1.0, 0.0]], n_results=3))
    assert (found["ids"], found["distances"]) == ([[]], [[]])


async def test_update_merges_metadata(chroma: Chroma) -> None:
    collection = await filled(chroma)
    await done(
        collection.update(
            ids=["a", "b", "absent"],
            embeddings=[*VECTORS[:2], VECTORS[0]],
            metadatas=[{"n": 10, "new": "x"}, {"weight": None}, {"n": 5}],
            documents=["very red fish", "blue whale", "nothing"],
        )
    )
    got = await done(collection.get(ids=["a", "b", "absent"], include=["metadatas", "documents", "embeddings"]))
    assert got["ids"] == ["a", "b"]
    assert got["metadatas"][0] == {**METADATAS[0], "n": 10, "new": "x"}
    assert got["metadatas"][1] == {key: value for key, value in METADATAS[1].items() if key != "weight"}
    assert got["documents"] == ["very red fish", "blue whale"]
    np.testing.assert_array_equal(got["embeddings"], VECTORS[:2])
    await done(collection.update(ids=["a"], embeddings=[[7.0, 7.0, 7.0]]))
    got = await done(collection.get(ids=["a"], include=["documents", "embeddings"]))
    assert got["documents"] == ["very red fish"]
    np.testing.assert_array_equal(got["embeddings"], [[7.0, 7.0, 7.0]])


async def test_upsert_adds_and_updates(chroma: Chroma) -> None:
    collection = await filled(chroma)
    await done(
        collection.upsert(
            ids=["e", "f"],
            embeddings=[[5.0, 5.0, 5.0], [6.0, 6.0, 6.0]],
            documents=["changed", "added"],
            metadatas=[{"color": "grey"}, {"color": "white"}],
        )
    )
    assert await done(collection.count()) == 6
    got = await done(collection.get(ids=["e", "f"]))
    assert got["documents"] == ["changed", "added"]
    assert got["metadatas"] == [{"color": "grey", "weight": 2.5}, {"color": "white"}]


async def test_delete(chroma: Chroma) -> None:
    collection = await filled(chroma)
    assert (await done(collection.delete(ids=["a"])))["deleted"] == 1
    assert (await done(collection.delete(where={"color": "blue"})))["deleted"] == 2
    assert (await done(collection.get()))["ids"] == ["d", "e"]
    assert (await done(collection.delete(where_document={"$contains": "night"})))["deleted"] == 1
    await done(collection.delete(ids=["d"], where={"color": "red"}))
    assert (await done(collection.get()))["ids"] == ["d"]
    await done(collection.add(ids=["a"], embeddings=[[1.0, 0.0, 0.0]]))
    assert (await done(collection.get()))["ids"] == ["d", "a"]


async def test_delete_at_most(chroma: Chroma) -> None:
    collection = await filled(chroma)
    assert (await done(collection.delete(where={"n": {"$gte": 1}}, limit=2)))["deleted"] == 2
    assert await done(collection.count()) == 3


async def test_any_text(chroma: Chroma) -> None:
    collection = await chroma.create()
    ids = ["ключ", "鍵", "clé\u0301", "🔑", "a b/c?d=e&f#g", "'; drop table--", "\t\n"]
    documents = [
        "Война и мир",
        "吾輩は猫である",
        "l’été",
        "🦈 shoal of 🐟",
        "\x01 control",
        '"quoted" \\ back',
        "x" * 200_000,
    ]
    metadatas: list[Any] = [{"ключ": text[:50], "emoji 🐠": "🐡"} for text in documents]
    await done(
        collection.add(
            ids=ids, embeddings=[[float(n), 1.0] for n in range(7)], documents=documents, metadatas=metadatas
        )
    )
    got = await done(collection.get())
    assert (got["ids"], got["documents"], got["metadatas"]) == (ids, documents, metadatas)
    assert (await done(collection.get(where_document={"$contains": "猫"})))["ids"] == ["鍵"]
    assert (await done(collection.get(where={"ключ": "l’été"})))["ids"] == ["clé\u0301"]
    assert (await done(collection.get(ids=["🔑"])))["documents"] == ["🦈 shoal of 🐟"]
    assert (await done(collection.get(where_document={"$contains": "x" * 1000})))["ids"] == ["\t\n"]


async def test_numbers_at_their_limits(chroma: Chroma) -> None:
    collection = await chroma.create()
    metadatas: list[Any] = [
        {"n": 2**63 - 1, "f": 1e300},
        {"n": -(2**63), "f": -1e-300},
        {"n": 2**53 + 1, "f": 0.1},
    ]
    await done(collection.add(ids=["a", "b", "c"], embeddings=[[1.0], [2.0], [3.0]], metadatas=metadatas))
    assert (await done(collection.get()))["metadatas"] == metadatas
    assert (await done(collection.get(where={"n": {"$gt": 2**53}})))["ids"] == ["a", "c"]
    assert (await done(collection.get(where={"f": {"$lt": 0.0}})))["ids"] == ["b"]


async def test_batches_larger_than_the_largest(chroma: Chroma) -> None:
    collection = await chroma.create()
    most = await done(chroma.client.get_max_batch_size())
    count = most * 2 + most // 2
    vectors = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    ids = [f"{number:06}" for number in range(count)]
    documents = [f"document {number}" for number in range(count)]
    if chroma.kind == "sync":
        batches = create_batches(chroma.client, ids, embeddings=list(vectors), documents=documents)
    else:  # the helper of the client knows the other one only
        cuts = [slice(start, start + most) for start in range(0, count, most)]
        batches = [(ids[cut], list(vectors[cut]), None, documents[cut]) for cut in cuts]
    assert len(batches) == 3
    for part_ids, part_vectors, _, part_documents in batches:
        await done(collection.add(ids=part_ids, embeddings=part_vectors, documents=part_documents))
    assert await done(collection.count()) == count
    with pytest.raises(ValueError, match=r"[Bb]atch size"):
        await done(collection.add(ids=ids, embeddings=list(vectors)))
    found = await done(collection.query(query_embeddings=[vectors[-1].tolist()], n_results=1))
    assert found["ids"] == [[ids[-1]]]
    last = await done(collection.get(limit=3, offset=count - 3))
    assert last["ids"] == ids[-3:]


async def test_read_levels(chroma: Chroma) -> None:
    from chromadb.api.types import ReadLevel

    collection = await filled(chroma)
    assert await done(collection.count(read_level=ReadLevel.INDEX_AND_WAL)) == 5
    assert await done(collection.count(read_level=ReadLevel.INDEX_ONLY)) in (0, 5)
    status = await done(collection.get_indexing_status())
    assert status.total_ops == 5
    assert status.num_indexed_ops + status.num_unindexed_ops == 5


async def test_add_with_documents_that_the_client_embeds(chroma: Chroma) -> None:
    collection = await done(chroma.client.create_collection("letters", embedding_function=Letters()))
    await done(collection.add(ids=["a", "b"], documents=["aab", "bbc"]))
    await done(collection.upsert(ids=["b", "c"], documents=["bbb", "ccc"]))
    await done(collection.update(ids=["a"], documents=["aaa"]))
    got = await done(collection.get(include=["embeddings", "documents"]))
    assert got["documents"] == ["aaa", "bbb", "ccc"]
    np.testing.assert_array_equal(got["embeddings"], [letters_of(text) for text in got["documents"]])
    found = await done(collection.query(query_texts=["abb", "c"], n_results=1))
    assert (found["ids"], found["distances"]) == ([["b"], ["c"]], [[2.0], [4.0]])
