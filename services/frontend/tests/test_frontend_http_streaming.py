"""Large answers: the same JSON in pieces of bounded size, made only as the client takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.frontend.tests.frontend_http_support import Site
from shoal_core.consistency import ServedAt
from shoal_core.contracts import Answer
from shoal_core.errors import Internal
from shoal_core.ranking import Search, Select
from shoal_core.records import DOCUMENT, EMBEDDING, ID, SPARSE_TYPE, URI_KEY, Kind, MetadataField, embedding_array
from shoal_frontend.http_api import pieces as pieces_module
from shoal_frontend.http_api.answers import DISTANCE, SCORE, get_json, query_json, search_json
from shoal_frontend.http_api.gateway import Message
from shoal_frontend.http_api.pieces import PIECE_BYTES
from shoal_frontend.http_api.sending import WHOLE_BYTES, sent
from shoal_testing.strategies import examples

EVERYTHING = ["embeddings", "documents", "uris", "metadatas", "distances"]
SMALL, LARGE = 0, 1 << 40


def answer_of(*counts: int, seed: int = 0, longest: int = 40) -> Answer:
    """Rows of every kind, nulls among them; so many for each query."""
    rng = np.random.default_rng(seed)
    rows = sum(counts)
    texts = [None if rng.random() < 0.2 else "ü" * int(rng.integers(0, longest)) for _ in range(rows)]
    sparse = [None if at % 3 else {"indices": [at, at + 1], "values": [0.1, 2.0]} for at in range(rows)]
    columns = {
        ID: pa.array([f"id{at}" for at in range(rows)], pa.string()),
        DOCUMENT: pa.array(texts, pa.string()),
        EMBEDDING: embedding_array(rng.standard_normal((rows, 3)).astype(np.float32)),
        DISTANCE: pa.array(rng.random(rows).astype(np.float32)),
        SCORE: pa.array(rng.random(rows)),
        MetadataField(URI_KEY, Kind.STRING).column: pa.array(texts[::-1], pa.string()),
        MetadataField("n", Kind.INT).column: pa.array([None if at % 2 else at for at in range(rows)], pa.int64()),
        MetadataField("t", Kind.STRING).column: pa.array(texts, pa.string()),
        MetadataField("l", Kind.STRINGS).column: pa.array([[text or ""] for text in texts], pa.list_(pa.string())),
        MetadataField("s", Kind.SPARSE).column: pa.array(sparse, SPARSE_TYPE),
    }
    return Answer(pa.table(columns), np.array(counts, np.uint32), ServedAt(1, 1))


@examples(60)
@given(
    counts=st.lists(st.integers(0, 12), max_size=6),
    piece=st.sampled_from((1, 64, 500, 4000)),
    include=st.lists(st.sampled_from(EVERYTHING), unique=True),
)
def test_pieces_say_what_the_whole_says(counts: list[int], piece: int, include: list[str]) -> None:
    answer = answer_of(*counts)
    select = Select("documents" in include, "embeddings" in include, "metadatas" in include, True, (URI_KEY,))
    searches = [Search(select=select), Search()]
    whole_search = [*search_json([answer, answer], searches, [["a"], []])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "PIECE_BYTES", piece)
        for whole, parts in (
            (get_json(answer, SMALL, include, {"more": 1}), get_json(answer, LARGE, include, {"more": 1})),
            (query_json(answer, SMALL, include), query_json(answer, LARGE, include)),
            (whole_search, search_json([answer, answer], searches, [["a"], []])),
        ):
            assert b"".join(parts) == b"".join(whole)


def test_what_is_small_is_what_one_call_of_the_encoder_gives() -> None:
    answer = answer_of(2, 0, 3)
    found = orjson.loads(b"".join(query_json(answer, SMALL, ["documents", "distances"])))
    documents, distances = answer.rows.column(DOCUMENT).to_pylist(), answer.rows.column(DISTANCE).to_numpy()
    assert found["ids"] == [["id0", "id1"], [], ["id2", "id3", "id4"]]
    assert found["documents"] == [documents[:2], [], documents[2:]]
    np.testing.assert_array_equal(np.float32(found["distances"][2]), distances[2:])
    assert (found["embeddings"], found["include"]) == (None, ["documents", "distances"])


def test_pieces_are_small_even_where_rows_are_not_alike() -> None:
    texts = ["x" * 10] * 50_000 + ["y" * 100_000] * 40
    rows = pa.table({ID: pa.array([str(at) for at in range(len(texts))]), DOCUMENT: pa.array(texts)})
    made = list(get_json(Answer(rows, np.array([len(texts)], np.uint32), ServedAt(1, 1)), LARGE, ["documents"]))
    assert max(map(len, made)) < 2 * PIECE_BYTES
    assert orjson.loads(b"".join(made))["documents"] == texts


# --- on the way


class Connection:
    """Where a response goes. It takes ``room`` messages and then no more until there is room; or the client is gone."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.messages: list[Message] = []
        self.gone = asyncio.Event()
        self._room = asyncio.Semaphore(room)

    async def send(self, message: Message) -> None:
        await self._room.acquire()
        self.messages.append(message)

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


def counted(made: list[int], count: int, size: int = PIECE_BYTES) -> Iterator[bytes]:
    for number in range(count):
        made.append(number)
        yield b"x" * size


SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}}


async def test_small_answers_are_one_message_with_their_length() -> None:
    connection = Connection()
    response = await sent([answer_of(3)], lambda _: counted([], 3, 10))
    await response(SCOPE, connection.receive, connection.send)
    start, body = connection.messages
    assert dict(start["headers"])[b"content-length"] == b"30"
    assert len(body["body"]) == 30


@pytest.mark.parametrize(
    ("recalls", "header"),
    [([0.97345, 0.91], "0.9100"), ([0.97342], "0.9734"), ([0.9, None], None), ([None], None), ([], None)],
)
async def test_the_least_recall_is_told_where_all_are_known(recalls: list[float | None], header: str | None) -> None:
    answers = [replace(answer_of(3), recall=recall) for recall in recalls]
    small = await sent(answers, lambda _: counted([], 3, 10))
    large = await sent(answers, lambda _: counted([], 100))
    assert small.headers.get("shoal-recall") == large.headers.get("shoal-recall") == header


async def test_large_answers_go_in_pieces() -> None:
    connection, made = Connection(), list[int]()
    response = await sent([answer_of(3)], lambda _: counted(made, 100))
    assert len(made) * PIECE_BYTES <= WHOLE_BYTES + PIECE_BYTES  # only the beginning yet
    await response(SCOPE, connection.receive, connection.send)
    start, first, *rest = connection.messages
    assert b"content-length" not in dict(start["headers"])
    assert max(len(message["body"]) for message in rest) <= PIECE_BYTES
    assert len(connection.body) == 100 * PIECE_BYTES
    assert not rest[-1]["more_body"]
    assert first["more_body"]


async def test_no_more_is_made_than_the_connection_takes() -> None:
    connection, made = Connection(room=3), list[int]()
    response = await sent([answer_of(3)], lambda _: counted(made, 1000))
    before = len(made)
    sending = asyncio.create_task(response(SCOPE, connection.receive, connection.send))
    while len(connection.messages) < 3:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(made) <= before + 3
    connection.gone.set()
    await sending
    assert len(made) <= before + 4


async def test_nothing_is_made_for_a_client_that_is_gone() -> None:
    connection, made = Connection(), list[int]()
    response = await sent([answer_of(3)], lambda _: counted(made, 100_000))
    connection.gone.set()
    await response(SCOPE, connection.receive, connection.send)
    assert len(made) < 1000


async def test_what_fails_at_once_is_an_error_answer() -> None:
    def failing() -> Iterator[bytes]:
        raise Internal("cannot be written")
        yield b""

    with pytest.raises(Internal):
        await sent([answer_of(3)], lambda _: failing())


async def test_a_large_get_query_and_search_over_the_gateway() -> None:
    site = await Site().start()
    rows = 2_000
    vectors = np.random.default_rng(0).standard_normal((rows, 96)).astype(np.float32)
    for start in range(0, rows, 1000):
        ids = [str(at) for at in range(start, start + 1000)]
        body = {"ids": ids, "embeddings": vectors[start : start + 1000].tolist(), "documents": ids}
        assert (await site.post("add", body)).status == 201
    get = await site.post("get", {"include": ["embeddings", "documents"]})
    assert len(get.body) > WHOLE_BYTES
    assert "content-length" not in get.headers
    assert get.headers["content-type"] == "application/json"
    np.testing.assert_array_equal(np.array(get.json["embeddings"], np.float32), vectors)
    asked: dict[str, Any] = {"query_embeddings": vectors[:2].tolist(), "n_results": 1500, "include": ["embeddings"]}
    query = await site.post("query", asked)
    assert "content-length" not in query.headers
    assert [len(ids) for ids in query.json["ids"]] == [1500, 1500]
    payload = {"limit": {"limit": rows}, "select": {"keys": ["#embedding"]}}
    search = await site.post("search", {"searches": [payload, payload]})
    assert "content-length" not in search.headers
    assert search.json["embeddings"][1] == get.json["embeddings"]
