"""Functions of services against a server that misbehaves on real sockets: the right vectors or a clear error, never another text's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shoal
from libs.client.tests.client_support import FakeApi, client_of
from shoal.embedding import Function, Gateway, GatewayLimits, HuggingFaceServer, Ollama, OpenAI, Prefixed
from shoal.embedding import gateway as gateway_module
from shoal_core import errors
from shoal_core.errors import (
    DeadlineExceeded,
    DimensionMismatch,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    ShoalError,
    Unauthenticated,
    Unavailable,
)
from shoal_testing.embedding_stub import (
    DIMENSION,
    HARMLESS,
    KEY,
    LASTING,
    PASSING,
    EmbeddingStub,
    Fault,
    vector_of,
)
from shoal_testing.strategies import examples

SERVICES = ("ollama", "openai", "huggingface_server")
QUICKLY = GatewayLimits(texts_per_call=3, concurrency=2, attempts=3, first_backoff_ms=0, answer_size_bytes=1 << 16)
TEXTS = [f"text {number}" for number in range(8)]
ERRORS = (InvalidArgument, Unavailable, ResourceExhausted, FailedPrecondition, Unauthenticated, PermissionDenied)


def function_of(service: str, url: str) -> Function:
    match service:
        case "ollama":
            return Ollama(url=url, model_name="m")
        case "openai":
            return OpenAI(model_name="m", api_base=f"{url}/v1/", api_key_env_var="SHOAL_TEST_KEY")
        case _:
            return HuggingFaceServer(url=f"{url}/embed")


def rows(texts: Sequence[str]) -> list[list[float]]:
    return [vector_of(text).tolist() for text in texts]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("service", SERVICES)
async def test_the_vectors_are_those_of_the_texts(service: str) -> None:
    async with EmbeddingStub() as stub:
        gateway = Gateway(function_of(service, stub.url), QUICKLY)
        vectors = await gateway.aembed_documents([*TEXTS, "text 0", "東京 \N{FISH}"])
        assert vectors.dtype == np.float32
        assert vectors.tolist() == rows([*TEXTS, "text 0", "東京 \N{FISH}"])
        queries = await asyncio.to_thread(gateway.embed_queries, TEXTS[:1])
        assert queries.tolist() == rows(TEXTS[:1])
        assert all(len(texts) <= 3 for texts in stub.texts)


@pytest.mark.parametrize("fault", sorted(PASSING | HARMLESS))
@pytest.mark.parametrize("service", SERVICES)
async def test_what_passes_is_tried_again(service: str, fault: Fault) -> None:
    async with EmbeddingStub() as stub:
        stub.script(fault)
        vectors = await Gateway(function_of(service, stub.url), QUICKLY).aembed_documents(TEXTS)
        assert vectors.tolist() == rows(TEXTS)
        assert len(stub.asked) == 3 + (fault in PASSING)


@pytest.mark.parametrize("service", SERVICES)
async def test_what_does_not_pass_is_tried_so_often_and_no_more(service: str) -> None:
    async with EmbeddingStub() as stub:
        for fault in sorted(PASSING):
            stub.script(*[fault] * 3)
            seen = len(stub.asked)
            with pytest.raises((Unavailable, ResourceExhausted), match=r"after 3 attempts") as caught:
                await Gateway(function_of(service, stub.url), QUICKLY).aembed_documents(["a"])
            assert len(stub.asked) == seen + 3
            assert repr(service) in caught.value.message
            assert KEY not in str(caught.value)
            assert isinstance(caught.value, ResourceExhausted) == fault.startswith("429")


@pytest.mark.parametrize("fault", sorted(LASTING))
@pytest.mark.parametrize("service", SERVICES)
async def test_a_wrong_answer_is_a_clear_error(service: str, fault: Fault) -> None:
    async with EmbeddingStub() as stub:
        stub.script(Fault.NONE, fault)
        gateway = Gateway(function_of(service, stub.url), QUICKLY)
        first = await gateway.aembed_documents(["a", "b"], dimension=DIMENSION)
        assert first.tolist() == rows(["a", "b"])
        with pytest.raises(ERRORS) as caught:
            await gateway.aembed_documents(["c", "d"], dimension=DIMENSION)
        assert len(stub.asked) == 2, "it is not tried again"
        assert repr(service) in caught.value.message
        assert KEY not in str(caught.value)
        kinds: dict[Fault, type[ShoalError]] = {
            Fault.WRONG_DIMENSION: DimensionMismatch,
            Fault.UNAUTHORIZED: Unauthenticated,
            Fault.NO_MODEL: FailedPrecondition,
            Fault.MOVED: FailedPrecondition,
        }
        assert type(caught.value) is kinds.get(fault, InvalidArgument)
        if fault in (Fault.NAN, Fault.ZERO):
            assert caught.value.field == "documents[1]"


@examples(40)
@given(
    service=st.sampled_from(SERVICES),
    faults=st.lists(st.sampled_from(sorted(set(Fault) - {Fault.SILENT})), max_size=12),
    count=st.integers(1, 20),
    per_call=st.integers(1, 5),
    at_once=st.integers(1, 4),
)
def test_no_record_is_stored_with_another_records_vector(
    service: str, faults: list[Fault], count: int, per_call: int, at_once: int
) -> None:
    """Whatever goes wrong in whatever order: what is written is right, and what is not right is not written."""
    limits = GatewayLimits(
        texts_per_call=per_call, concurrency=at_once, attempts=3, first_backoff_ms=0, answer_size_bytes=1 << 16
    )

    async def run() -> None:
        async with EmbeddingStub() as stub, client_of(FakeApi()) as client:
            gateway = Gateway(function_of(service, stub.url), limits)
            collection = await client.create_collection("c", embedding_function=gateway, dimension=DIMENSION)
            stub.script(*faults)
            written = False
            for start in range(0, count, 7):
                texts = [f"text {number}" for number in range(start, min(start + 7, count))]
                try:
                    await collection.add(ids=texts, documents=texts)
                    written = True
                except ERRORS:
                    assert faults, "nothing went wrong"
            got = await collection.get(include=["documents", "embeddings"])
            assert bool(got.ids) == written
            if got.ids:
                assert got.embeddings is not None
                assert got.documents == got.ids
                assert got.embeddings.tolist() == rows(got.ids)
            assert stub.most <= at_once
            assert all(len(texts) <= per_call for texts in stub.texts)
            assert len(stub.asked) <= 3 * sum(-(-min(7, count - start) // per_call) for start in range(0, count, 7))

    asyncio.run(run())


async def test_no_more_calls_are_under_way_than_allowed_and_no_fewer() -> None:
    """Two threads, two event loops and one gateway."""
    async with EmbeddingStub() as stub:
        gateway = Gateway(Ollama(url=stub.url), GatewayLimits(texts_per_call=1, concurrency=3))
        stub.gate.clear()
        users = [asyncio.to_thread(gateway.embed_documents, TEXTS), gateway.aembed_queries(TEXTS)]
        users.append(asyncio.to_thread(lambda: asyncio.run(gateway.aembed_documents([f"{text}!" for text in TEXTS]))))
        tasks = [asyncio.ensure_future(user) for user in users]
        while len(stub.asked) < 3:
            await asyncio.sleep(0.001)
        stub.gate.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.tolist() for answer in answers[:2]] == [rows(TEXTS)] * 2
        assert stub.most == 3


async def test_calls_do_not_come_faster_than_the_rate() -> None:
    """Whatever delays a call makes it later, so the n-th cannot come before its token was there."""
    rate, burst = 200.0, 2
    async with EmbeddingStub() as stub:
        begin = time.monotonic()
        limits = GatewayLimits(texts_per_call=1, concurrency=4, calls_per_second=rate, burst_calls=burst)
        await Gateway(Ollama(url=stub.url), limits).aembed_documents([f"{number}" for number in range(30)])
        for number, asked in enumerate(stub.asked, start=1):
            assert asked.at - begin >= (number - burst) / rate - 1e-6


async def test_a_service_that_is_silent_meets_the_deadline() -> None:
    async with EmbeddingStub() as stub:
        stub.script(Fault.SILENT, Fault.SILENT)
        limits = GatewayLimits(call_timeout_ms=50, attempts=2, first_backoff_ms=0)
        with pytest.raises(DeadlineExceeded, match="'ollama' did not answer within 50 ms"):
            await Gateway(Ollama(url=stub.url), limits).aembed_documents(["a"])
        assert len(stub.asked) == 2
        stub.script(Fault.SILENT)
        with pytest.raises(DeadlineExceeded, match="did not embed 1 texts within 50 ms"):
            await Gateway(Ollama(url=stub.url), GatewayLimits(timeout_ms=50)).aembed_documents(["a"])


async def test_nobody_listens() -> None:
    async with EmbeddingStub() as stub:
        url = stub.url
    with pytest.raises(Unavailable, match=r"gave no answer \(ConnectError\)"):
        await Gateway(Ollama(url=url), GatewayLimits(attempts=1)).aembed_documents(["a"])


async def test_cancelling_ends_the_call() -> None:
    async with EmbeddingStub() as stub:
        stub.script(Fault.SILENT)
        task = asyncio.ensure_future(Gateway(Ollama(url=stub.url)).aembed_documents(["a"]))
        while not stub.asked:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while stub._inside:  # the server sees that the connection is closed
            await asyncio.sleep(0.001)


# --- what is sent


async def test_what_ollama_is_asked() -> None:
    async with EmbeddingStub() as stub:
        for url in (stub.url, f"{stub.url}/", f"{stub.url}/api/embeddings"):
            await Gateway(Ollama(url=url, model_name="nomic")).aembed_documents(["a"])
        assert {asked.path for asked in stub.asked} == {"/api/embed"}
        assert stub.asked[0].body == {"model": "nomic", "input": ["a"]}
        assert "authorization" not in stub.asked[0].headers


async def test_what_openai_is_asked() -> None:
    async with EmbeddingStub() as stub:
        function = OpenAI(
            model_name="e",
            api_base=f"{stub.url}/v1",
            api_key_env_var="SHOAL_TEST_KEY",
            organization_id="o",
            default_headers={"x-team": "search"},
            dimensions=4,
            document_input_type="passage",
            query_input_type="query",
            encoding_format="base64",
        )
        stub.script(Fault.REORDERED)
        documents = await Gateway(function).aembed_documents(["a", "b"])
        assert documents.tolist() == [vector_of("a", 4).tolist(), vector_of("b", 4).tolist()]
        await Gateway(function).aembed_queries(["a"])
        first, second = stub.asked
        wanted = {"model": "e", "encoding_format": "base64", "dimensions": 4}
        assert first.body == {**wanted, "input": ["a", "b"], "input_type": "passage"}
        assert second.body == {**wanted, "input": ["a"], "input_type": "query"}
        assert first.headers["authorization"] == f"Bearer {KEY}"
        assert (first.headers["openai-organization"], first.headers["x-team"]) == ("o", "search")
        assert first.path == "/v1/embeddings"


@pytest.mark.parametrize(
    "indices", [[0, 0], [1, 2], [-1, 0], [0, 7], [0, None], [0, True], [0, 1.0], [0, "1"], [[0], 1], [0], [0, 1, 2]]
)
def test_an_index_that_is_not_that_of_one_text_each_is_refused(indices: list[Any]) -> None:
    items = [{"index": index, "embedding": [1.0]} for index in indices]
    with pytest.raises(InvalidArgument, match=r"index|vectors for 2 texts"):
        OpenAI(model_name="m").rows({"data": items}, 2)


async def test_what_a_text_embeddings_server_is_asked() -> None:
    async with EmbeddingStub() as stub:
        plain = HuggingFaceServer(url=f"{stub.url}/embed", api_key_env_var="SHOAL_TEST_KEY")
        await Gateway(plain).aembed_documents(["a"])
        sided = HuggingFaceServer(url=f"{stub.url}/embed", truncate=True, query_prompt_name="query")
        await Gateway(sided).aembed_queries(["a"])
        assert [asked.body for asked in stub.asked] == [
            {"inputs": ["a"]},
            {"inputs": ["a"], "truncate": True, "prompt_name": "query"},
        ]
        assert stub.asked[0].headers["authorization"] == f"Bearer {KEY}"


async def test_sides_have_their_prefixes() -> None:
    async with EmbeddingStub() as stub:
        function = Prefixed(Ollama(url=stub.url), document_prefix="passage: ", query_prefix="query: ")
        documents, queries = (
            await Gateway(function).aembed_documents(["a"]),
            await Gateway(function).aembed_queries(["a"]),
        )
        assert (documents.tolist(), queries.tolist()) == (rows(["passage: a"]), rows(["query: a"]))


async def test_a_key_that_is_not_there_is_named_and_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_TEST_KEY")
    async with EmbeddingStub() as stub:
        gateway = Gateway(function_of("openai", stub.url), QUICKLY)
        with pytest.raises(FailedPrecondition, match="SHOAL_TEST_KEY, which is not set"):
            await gateway.aembed_documents(["a"])
        monkeypatch.setenv("SHOAL_TEST_KEY", "se\ncret")
        with pytest.raises(FailedPrecondition, match="cannot be sent") as caught:
            await gateway.aembed_documents(["a"])
        assert "cret" not in str(caught.value)
        assert not stub.asked


async def test_what_the_service_says_is_told_without_the_key() -> None:
    async with EmbeddingStub() as stub:
        stub.script(Fault.BAD_REQUEST)
        with pytest.raises(InvalidArgument, match=r"answered 400: \"it is so; the key was \*\*\*\""):
            await Gateway(function_of("openai", stub.url)).aembed_documents(["a"])


# --- in the SDK


async def test_text_in_text_out_in_async_code() -> None:
    async with EmbeddingStub() as stub, client_of(FakeApi(), embedding_hosts=[stub.url[7:]]) as client:
        films = await client.create_collection("films", embedding_function=Ollama(url=stub.url, model_name="m"))
        await films.add(ids=TEXTS, documents=TEXTS)
        again = await client.get_collection("films")  # made again from what is stored
        found = await again.query(query_texts=["text 3", "text 5"], n_results=1)
        assert found.documents == [["text 3"], ["text 5"]]
        await again.update(ids=["text 3"], documents=["other"])
        assert (await again.query(query_texts="other", n_results=1)).ids == [["text 3"]]
        searched = await again.search(shoal.Search(rank=shoal.Knn("text 5", limit=3), limit=1))
        assert searched.ids == ["text 5"]


async def test_a_wrong_dimension_is_found_before_anything_is_written() -> None:
    async with EmbeddingStub() as stub, client_of(FakeApi()) as client:
        films = await client.create_collection("films", embedding_function=Ollama(url=stub.url), dimension=3)
        with pytest.raises(errors.DimensionMismatch, match="dimension 6, the collection has 3"):
            await films.add(ids=["a"], documents=["a"])
        assert await films.count() == 0


def test_local_functions_run_in_a_bounded_number_of_threads() -> None:
    inside, most, changed = 0, 0, threading.Condition()

    def embed(texts: list[str]) -> Any:
        nonlocal inside, most
        with changed:
            inside += 1
            most = max(most, inside)
            changed.notify_all()
            assert changed.wait_for(lambda: most == 3, 20)
            inside -= 1
        return [vector_of(text) for text in texts]

    limits = GatewayLimits(texts_per_call=1, concurrency=3)
    function = shoal.embedding.CallableEmbedding("f", DIMENSION, embed)
    assert Gateway(function, limits).embed_documents(TEXTS).tolist() == rows(TEXTS)
    assert most == 3


def test_a_gateway_begins_anew_in_a_forked_process() -> None:
    code = """
import os
from shoal.embedding import CallableEmbedding, Gateway
gateway = Gateway(CallableEmbedding("f", 1, lambda texts: [[float(len(text))] for text in texts]))
assert gateway.embed_documents(["a"]).tolist() == [[1.0]]
pid = os.fork()
assert gateway.embed_documents(["ab"]).tolist() == [[2.0]]
if pid:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_that_come_first_at_once_share_one_loop() -> None:
    nobody = -4711  # of no process
    begin, found = threading.Barrier(8), []

    def come() -> None:
        begin.wait(20)
        found.append(gateway_module._loop(nobody))

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    found[0].close()


def test_what_a_callable_raises_comes_as_it_is() -> None:
    def embed(texts: list[str]) -> Any:
        raise ZeroDivisionError("of my own")

    with pytest.raises(ZeroDivisionError, match="of my own"):
        Gateway(shoal.embedding.CallableEmbedding("f", None, embed)).embed_documents(["a"])


def test_progress_may_not_call_the_gateway() -> None:
    gateway = Gateway(shoal.embedding.CallableEmbedding("f", None, lambda texts: [[1.0]] * len(texts)))
    with pytest.raises(FailedPrecondition, match="own callback"):
        gateway.embed_documents(["a"], on_progress=lambda done, total: print(gateway.embed_documents(["b"])))
