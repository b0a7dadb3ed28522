"""Functions that make sparse vectors of texts: BM25, and learned ones of libraries where these are installed.

Named and configured by data, as Chroma's clients store it with a sparse key; numbers are those of its Python client. Models must be
on this machine already: nothing is downloaded, and no code of a model is run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import pyarrow as pa

from shoal.embedding.config import read_config
from shoal.embedding.protocol import Side
from shoal_core.errors import FailedPrecondition, InvalidArgument
from shoal_core.records import SPARSE_TYPE

_TASKS: Final = ("document", "query")

Pair = tuple[Any, Any]


class SparseFunction(Protocol):
    """Texts → sparse vectors."""

    def encode(self, texts: pa.Array, side: Side) -> pa.StructArray:
        """(n,) of `SPARSE_TYPE` with ascending indices, null for null. Blocks.

        Raises `FailedPrecondition` where the library or the model is not there, `InvalidArgument` for what it answers.
        """
        ...


def sparse_function(stored: Mapping[str, Any], place: str) -> SparseFunction:
    """The function that ``{"name": …, "config": {…}}`` describes.

    Raises `FailedPrecondition` for one that is not built in, `InvalidArgument` for a configuration that is none of its.
    """
    name, config = stored.get("name"), stored.get("config") or {}
    if not isinstance(config, Mapping):
        raise InvalidArgument("expected an object", field=f"{place}.config")
    match name:
        case "chroma_bm25":
            return _Bm25(config)
        case FastEmbedSparse.NAME:
            return read_config(FastEmbedSparse, config, f"{place}.config")
        case HuggingFaceSparse.NAME:
            return read_config(HuggingFaceSparse, config, f"{place}.config")
    raise FailedPrecondition(f"{name!r} is not built in; give sparse vectors, made by the function itself", field=place)


class _Bm25:
    """BM25, alike for both sides."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from shoal.embedding.bm25 import Bm25  # text analysis takes a while to load

        self._bm25 = Bm25.from_config(config)

    def encode(self, texts: pa.Array, side: Side) -> pa.StructArray:
        """See `SparseFunction.encode`."""
        return self._bm25.encode(texts).vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class FastEmbedSparse:
    """A sparse model of fastembed, such as ``prithivida/Splade_PP_en_v1`` or ``Qdrant/bm25``.

    Attributes:
        model_name: as fastembed calls it.
        task: what documents are encoded as: ``document`` or ``query``.
        query_config: ``{"task": …}`` for texts that are searched with; None: as documents.
        cache_dir: where the model lies; None for the library's own place.
        threads, cuda, lazy_load: of the library.
        device_ids: of Chroma's configurations; only null.
    """

    NAME: ClassVar[str] = "fastembed_sparse"

    model_name: str
    task: str | None = "document"
    query_config: Mapping[str, Any] | None = field(default=None, hash=False)
    cache_dir: str | None = None
    threads: int | None = None
    cuda: bool | None = None
    device_ids: None = None
    lazy_load: bool | None = None

    def __post_init__(self) -> None:
        _check_tasks(self.task, self.query_config)

    def encode(self, texts: pa.Array, side: Side) -> pa.StructArray:
        """See `SparseFunction.encode`."""
        model = _fastembed_model(self.model_name, self.cache_dir, self.threads, self.cuda, self.lazy_load)
        encode = model.query_embed if _task(self.task, self.query_config, side) == "query" else model.embed
        return _encoded(texts, lambda given: ((vector.indices, vector.values) for vector in encode(given)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceSparse:
    """A sparse encoder of sentence-transformers, such as ``naver/splade-v3``.

    Attributes:
        device: of PyTorch.
        task, query_config: as those of `FastEmbedSparse`.
        kwargs: of Chroma's configurations; only empty.
    """

    NAME: ClassVar[str] = "huggingface_sparse"

    model_name: str
    device: str
    task: str | None = "document"
    query_config: Mapping[str, Any] | None = field(default=None, hash=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_tasks(self.task, self.query_config)
        if self.kwargs:
            raise InvalidArgument("arguments of the library are not taken from data", field="kwargs")

    def encode(self, texts: pa.Array, side: Side) -> pa.StructArray:
        """See `SparseFunction.encode`."""
        model = _sparse_encoder(self.model_name, self.device)
        query = _task(self.task, self.query_config, side) == "query"
        encode = model.encode_query if query else model.encode_document
        return _encoded(texts, lambda given: map(_nonzero, encode(given)))


def _task(task: str | None, query_config: Mapping[str, Any] | None, side: Side) -> str:
    if side is Side.QUERIES and query_config is not None:
        return str(query_config.get("task"))
    return task or "document"


def _check_tasks(task: str | None, query_config: Mapping[str, Any] | None) -> None:
    if task not in (None, *_TASKS):
        raise InvalidArgument(f"{task!r} is none of {', '.join(_TASKS)}", field="task")
    if query_config is not None and (query_config.keys() != {"task"} or query_config["task"] not in _TASKS):
        raise InvalidArgument(f'expected {{"task": …}} with one of {", ".join(_TASKS)}', field="query_config")


def _encoded(texts: pa.Array, encode: Callable[[list[str]], Iterable[Pair]]) -> pa.StructArray:
    """One vector for each text that is there."""
    valid = np.asarray(texts.is_valid())
    given = texts.drop_null().to_pylist()
    made = [*_sorted(encode(given))] if given else []
    if len(made) != len(given):
        raise InvalidArgument(f"the function returned {len(made)} sparse vectors for {len(given)} texts")
    rows = iter(made)
    return pa.array([next(rows) if there else None for there in valid.tolist()], SPARSE_TYPE)


def _sorted(pairs: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    """Ascending by index, as the schema's vectors are; numpy arrays of one length."""
    for given_indices, given_values in pairs:
        indices, values = np.asarray(given_indices, np.int64), np.asarray(given_values, np.float32)
        if indices.shape != values.shape or indices.ndim != 1:
            raise InvalidArgument("the function returned a sparse vector whose indices and values are not as many")
        order = np.argsort(indices, kind="stable")
        yield {"indices": indices[order], "values": values[order]}


def _nonzero(vector: Any) -> Pair:
    """Of a tensor, sparse or dense."""
    dense = vector.to_dense() if hasattr(vector, "to_dense") else vector
    row = np.asarray(dense.cpu().numpy() if hasattr(dense, "cpu") else dense)
    found = np.flatnonzero(row)
    return found, row[found]


@functools.lru_cache(maxsize=4)
def _fastembed_model(
    name: str, cache_dir: str | None, threads: int | None, cuda: bool | None, lazy_load: bool | None
) -> Any:
    library = _library("fastembed", "fastembed")
    return _there(
        name,
        lambda: library.SparseTextEmbedding(
            name,
            cache_dir=cache_dir,
            threads=threads,
            cuda=bool(cuda),
            lazy_load=bool(lazy_load),
            local_files_only=True,
        ),
    )


@functools.lru_cache(maxsize=4)
def _sparse_encoder(name: str, device: str) -> Any:
    library = _library("sentence_transformers", "sentence-transformers")
    return _there(
        name,
        lambda: library.SparseEncoder(
            name,
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        ),
    )


def _library(module: str, package: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise FailedPrecondition(
            f"the function needs the package {package!r}, which is not installed", field="embedding_function"
        ) from error


def _there(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"the model {name!r} is not on this machine; download it there first", field="embedding_function"
        ) from error
