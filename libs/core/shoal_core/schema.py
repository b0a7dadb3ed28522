"""The schema of a collection: which indexes it keeps and how its text is analysed. One canonical form, stored as JSON.

An index that is off is neither built nor used: a filter on its key is an error unless the reader allows a scan. A segment built
while an index was off is scanned when it is on again, until a merge rewrites it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

from shoal_core.errors import InvalidArgument
from shoal_core.records import DOCUMENT, Kind

Json = Mapping[str, Any]

DOCUMENT_KEY = f"#{DOCUMENT}"


class Index(StrEnum):
    """What can be on or off. The first four serve filters on scalars and on lists of them."""

    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    STRING = "string"
    SUBSTRING = "substring"
    RANKED = "ranked"
    SPARSE = "sparse"


INDEX_OF: Mapping[Kind, Index] = {
    Kind.INT: Index.INT,
    Kind.INTS: Index.INT,
    Kind.FLOAT: Index.FLOAT,
    Kind.FLOATS: Index.FLOAT,
    Kind.BOOL: Index.BOOL,
    Kind.BOOLS: Index.BOOL,
    Kind.STRING: Index.STRING,
    Kind.STRINGS: Index.STRING,
    Kind.SPARSE: Index.SPARSE,
}


@dataclass(frozen=True, slots=True)
class Analyzer:
    """How text becomes terms. Fixed when the collection is created: terms of segments must agree with those of queries.

    Attributes:
        tokenizer: ``words`` (runs of letters, digits and underscores) or ``whitespace``.
        language: a Snowball stemmer such as ``english``, with its stop words; ``none`` keeps words as they are.
        token_length: longer tokens, in characters, are left out.
        stop_words: instead of the language's own; None for those.
    """

    tokenizer: str = "words"
    language: str = "english"
    token_length: int = 40
    stop_words: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Bm25:
    """Parameters of BM25 (Robertson and Zaragoza 2009), used at query time only."""

    k1: float = 1.2
    b: float = 0.75


LEAST_RECALL: Final = 0.5
LARGEST_RECALL: Final = 0.999


@dataclass(frozen=True, slots=True)
class VectorConfig:
    """How the graphs of larger segments are built and searched (HNSW; Malkov and Yashunin 2016).

    Attributes:
        m: links of a node. ef_construction: effort of building.
        ef_search: effort of a search that asks for no recall; 0: what ``recall`` needs.
        recall: the share of the true nearest that a search finds on average, if it asks for nothing else.
    """

    m: int = 16
    ef_construction: int = 100
    ef_search: int = 0
    recall: float = 0.95


@dataclass(frozen=True, slots=True)
class SparseConfig:
    """A sparse vector key.

    Attributes:
        idf: weigh query values by the inverse document frequency of their dimension over the collection.
        source_key, embedding_function: what a client makes the vectors from and with; opaque here.
    """

    idf: bool = False
    source_key: str | None = None
    embedding_function: Json | None = None


@dataclass(frozen=True, slots=True)
class Schema:
    """See the module.

    Attributes:
        off: indexes that are off for every key that does not say otherwise.
        keys: by metadata key (``#document`` for text), indexes that are on or off for it.
        sparse: settings of sparse vector keys.
    """

    off: frozenset[Index] = frozenset()
    keys: Mapping[str, Mapping[Index, bool]] = field(default_factory=dict)
    analyzer: Analyzer = Analyzer()
    bm25: Bm25 = Bm25()
    vector: VectorConfig = VectorConfig()
    sparse: Mapping[str, SparseConfig] = field(default_factory=dict)

    def enabled(self, key: str, index: Index) -> bool:
        """Whether a key has an index."""
        return self.keys.get(key, {}).get(index, index not in self.off)

    def to_json(self) -> dict[str, Any]:
        """What is stored; what is as by default is left out. The inverse of `parse_schema`."""
        plain: dict[str, Any] = {
            "off": sorted(str(index) for index in self.off),
            "keys": {key: {str(index): on for index, on in flags.items()} for key, flags in self.keys.items()},
            "analyzer": _changed(self.analyzer, Analyzer()),
            "bm25": _changed(self.bm25, Bm25()),
            "vector": _changed(self.vector, VectorConfig()),
            "sparse": {key: _changed(config, SparseConfig()) for key, config in self.sparse.items()},
        }
        return {name: value for name, value in plain.items() if value}


def parse_schema(value: Json | None) -> Schema:
    """The schema of its JSON form; None and ``{}`` are the default. Raises `InvalidArgument` naming the member at fault."""
    given = _object({} if value is None else value, "schema", ("off", "keys", "analyzer", "bm25", "vector", "sparse"))
    keys = _object(given.get("keys", {}), "schema.keys")
    sparse = _object(given.get("sparse", {}), "schema.sparse")
    return Schema(
        off=frozenset(_index(name, "schema.off") for name in _list(given.get("off", []), "schema.off")),
        keys={key: _flags(flags, f"schema.keys.{key}") for key, flags in keys.items()},
        analyzer=_analyzer(_object(given.get("analyzer", {}), "schema.analyzer", _names(Analyzer))),
        bm25=_bm25(_object(given.get("bm25", {}), "schema.bm25", _names(Bm25))),
        vector=_vector(_object(given.get("vector", {}), "schema.vector", _names(VectorConfig))),
        sparse={key: _sparse(config, f"schema.sparse.{key}") for key, config in sparse.items()},
    )


def check_change(old: Schema, new: Schema) -> None:
    """Raise `InvalidArgument` for a change that stored segments cannot follow: the analyzer is fixed."""
    if old.analyzer != new.analyzer:
        raise InvalidArgument(
            "how text is analysed is fixed when the collection is created; make a new collection",
            field="schema.analyzer",
        )


def _names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(item.name for item in fields(cls))


def _changed(value: Any, default: Any) -> dict[str, Any]:
    names = _names(type(value))
    found = {name: getattr(value, name) for name in names if getattr(value, name) != getattr(default, name)}
    return {name: list(item) if isinstance(item, tuple) else item for name, item in found.items()}


def _object(value: Any, place: str, names: tuple[str, ...] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key for key in value):
        raise InvalidArgument("expected an object", field=place)
    unknown = sorted(set(value) - set(names)) if names is not None else []
    if unknown:
        raise InvalidArgument(f"unknown; one of {', '.join(names or ())}", field=f"{place}.{unknown[0]}")
    return value


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise InvalidArgument("expected a list", field=place)
    return list(value)


def _index(name: Any, place: str) -> Index:
    try:
        return Index(name)
    except ValueError as error:
        raise InvalidArgument(f"{name!r} is no index; one of {', '.join(Index)}", field=place) from error


def _flags(value: Any, place: str) -> dict[Index, bool]:
    flags = _object(value, place)
    for name, on in flags.items():
        if not isinstance(on, bool):
            raise InvalidArgument("expected true or false", field=f"{place}.{name}")
    return {_index(name, place): on for name, on in flags.items()}


def _analyzer(given: Mapping[str, Any]) -> Analyzer:
    tokenizer = given.get("tokenizer", "words")
    if tokenizer not in ("words", "whitespace"):
        raise InvalidArgument(f"{tokenizer!r} is not words or whitespace", field="schema.analyzer.tokenizer")
    language = given.get("language", "english")
    if not isinstance(language, str) or not language:
        raise InvalidArgument("expected the name of a language", field="schema.analyzer.language")
    stop_words = given.get("stop_words")
    words = None if stop_words is None else tuple(_list(stop_words, "schema.analyzer.stop_words"))
    if words is not None and not all(isinstance(word, str) for word in words):
        raise InvalidArgument("expected strings", field="schema.analyzer.stop_words")
    return Analyzer(tokenizer, language, _whole(given, "token_length", 40, 1, 1000, "schema.analyzer"), words)


def _bm25(given: Mapping[str, Any]) -> Bm25:
    return Bm25(
        _number(given, "k1", 1.2, 0.0, 100.0, "schema.bm25"), _number(given, "b", 0.75, 0.0, 1.0, "schema.bm25")
    )


def _vector(given: Mapping[str, Any]) -> VectorConfig:
    return VectorConfig(
        _whole(given, "m", 16, 2, 256, "schema.vector"),
        _whole(given, "ef_construction", 100, 2, 4096, "schema.vector"),
        _whole(given, "ef_search", 0, 0, 4096, "schema.vector"),
        _number(given, "recall", 0.95, LEAST_RECALL, LARGEST_RECALL, "schema.vector"),
    )


def _sparse(value: Any, place: str) -> SparseConfig:
    given = _object(value, place, _names(SparseConfig))
    idf, source, function = given.get("idf", False), given.get("source_key"), given.get("embedding_function")
    if not isinstance(idf, bool):
        raise InvalidArgument("expected true or false", field=f"{place}.idf")
    if source is not None and not isinstance(source, str):
        raise InvalidArgument("expected a string", field=f"{place}.source_key")
    return SparseConfig(idf, source, None if function is None else _object(function, f"{place}.embedding_function"))


def _whole(given: Mapping[str, Any], name: str, default: int, least: int, most: int, place: str) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidArgument(f"{value!r}; a whole number from {least} to {most}", field=f"{place}.{name}")
    return value


def _number(given: Mapping[str, Any], name: str, default: float, least: float, most: float, place: str) -> float:
    value = given.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidArgument(f"{value!r}; a number from {least} to {most}", field=f"{place}.{name}")
    return float(value)
