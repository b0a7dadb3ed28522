"""The reference system's JSON of a schema, from and to the canonical one.

Its indexes are, by type of value: on or off for all keys (``defaults``) and for single ones (``keys``). What it has of full text
is Shoal's substring index of documents; the graph of embeddings is always on. Which algorithm searches a sparse index is accepted
and forgotten: there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal_core.errors import InvalidArgument
from shoal_core.schema import DOCUMENT_KEY, Index, Schema, SparseConfig
from shoal_frontend.http_api.body_error import check_known, flag_of, inside, member, object_of, one_of, text_of
from shoal_frontend.http_api.vector_shapes import FUNCTION, HNSW, Settings, function_of, hnsw_settings, space_of

EMBEDDING_KEY = "#embedding"
_FTS, _VECTOR, _SPARSE = "fts_index", "vector_index", "sparse_vector_index"
_INVERTED: Mapping[Index, tuple[str, str]] = {
    Index.STRING: ("string", "string_inverted_index"),
    Index.INT: ("int", "int_inverted_index"),
    Index.FLOAT: ("float", "float_inverted_index"),
    Index.BOOL: ("bool", "bool_inverted_index"),
}
_INDEXES = (("string", _FTS), ("float_list", _VECTOR), ("sparse_vector", _SPARSE), *_INVERTED.values())
_HNSW_SETTINGS = (
    "ef_construction",
    "max_neighbors",
    "ef_search",
    "num_threads",
    "batch_size",
    "sync_threshold",
    "resize_factor",
)
_CONFIGS: Mapping[str, tuple[str, ...]] = {
    _VECTOR: ("space", FUNCTION, "source_key", HNSW, "spann"),
    _SPARSE: (FUNCTION, "source_key", "bm25", "algorithm"),
}


@dataclass(frozen=True, slots=True)
class GivenSchema:
    """A schema as it came.

    Attributes:
        schema: but for the settings of the vector index.
        settings: of the vector index: what was given of the space and the HNSW settings.
        function: what the client says of its embedding function.
    """

    schema: Schema
    settings: Settings
    function: Mapping[str, Any] | None

    @property
    def changed(self) -> bool:
        """Whether it says anything but the default."""
        return bool(self.settings) or self.function is not None or self.schema != Schema()


@dataclass(frozen=True, slots=True)
class _Switch:
    """An index that is turned on or off, with what else is said of it."""

    enabled: bool
    config: Mapping[str, Any]
    place: str


def render_schema(schema: Schema, settings: Settings, function: Mapping[str, Any] | None) -> dict[str, Any]:
    """The JSON of a schema, with all ``settings`` of the vector index."""
    of_function = {} if function is None else {FUNCTION: function}
    graph = {HNSW: {name: settings[name] for name in _HNSW_SETTINGS}}
    vector = {"space": settings["space"], **of_function, **graph}
    source = {"space": settings["space"], **of_function, "source_key": DOCUMENT_KEY, **graph}
    unknown = {FUNCTION: {"type": "unknown"}, "bm25": False}
    defaults: dict[str, Any] = {
        "string": {_FTS: _switch(False)},
        "float_list": {_VECTOR: _switch(False, vector)},
        "sparse_vector": {_SPARSE: _switch(False, unknown)},
    }
    for index, (kind, name) in _INVERTED.items():
        defaults.setdefault(kind, {})[name] = _switch(index not in schema.off)
    document = {
        _FTS: _switch(schema.enabled(DOCUMENT_KEY, Index.SUBSTRING)),
        _INVERTED[Index.STRING][1]: _switch(False),
    }
    return {
        "defaults": defaults,
        "keys": {
            **{key: _render_key(schema, key) for key in (*schema.keys, *schema.sparse)},
            DOCUMENT_KEY: {"string": document},
            EMBEDDING_KEY: {"float_list": {_VECTOR: _switch(True, source)}},
        },
    }


def schema_of(value: Any) -> GivenSchema:
    """What a schema's JSON says; null says nothing.

    Raises:
        BodyError: a part is missing, unknown or of another type.
        InvalidArgument: an index is turned on where there is none, or the vector index off; a setting is out of range; the schema
            asks for encryption keys of the client's own, which Shoal does not have.
    """
    if value is None:
        return GivenSchema(Schema(), {}, None)
    given = object_of(value, "schema")
    defaults = object_of(member(given, "defaults", "schema"), "schema.defaults")
    keys = object_of(member(given, "keys", "schema"), "schema.keys")
    if given.get("cmek") is not None:
        raise InvalidArgument("encryption keys of the client's own are not supported", field="schema.cmek")
    switches = {key: _switches(types, f"schema.keys.{key}") for key, types in keys.items()}
    graph = _of_embedding(switches.pop(EMBEDDING_KEY, {}))
    flags = {
        key: _of_document(found) if key == DOCUMENT_KEY else _of_key(key, found) for key, found in switches.items()
    }
    schema = Schema(
        off=_of_defaults(_switches(defaults, "schema.defaults")),
        keys={key: found for key, found in flags.items() if found or key != DOCUMENT_KEY},
        sparse={key: _sparse_config(found[_SPARSE]) for key, found in switches.items() if _SPARSE in found},
    )
    if graph is None:
        return GivenSchema(schema, {}, None)
    settings, function = _graph_config(graph)
    return GivenSchema(schema, settings, function)


# --- rendering


def _switch(enabled: bool, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"enabled": enabled, "config": dict(config or {})}


def _render_key(schema: Schema, key: str) -> dict[str, Any]:
    flags = schema.keys.get(key, {})
    types: dict[str, Any] = {}
    for index, (kind, name) in _INVERTED.items():
        if index in flags:
            types[kind] = {name: _switch(flags[index])}
    if Index.SPARSE not in flags and key not in schema.sparse:
        return types
    config = schema.sparse.get(key, SparseConfig())
    said = {FUNCTION: config.embedding_function, "source_key": config.source_key, "bm25": config.idf or None}
    kept = {name: value for name, value in said.items() if value is not None}
    return {**types, "sparse_vector": {_SPARSE: _switch(schema.enabled(key, Index.SPARSE), kept)}}


# --- reading


def _switches(value: Any, place: str) -> dict[str, _Switch]:
    """The indexes of a value's types, by their names."""
    types = object_of(value, place)
    found: dict[str, _Switch] = {}
    for kind, name in _INDEXES:
        given = object_of(types.get(kind), f"{place}.{kind}").get(name)
        if given is not None:
            found[name] = _given_switch(given, name, f"{place}.{kind}.{name}")
    return found


def _given_switch(value: Any, name: str, place: str) -> _Switch:
    given = object_of(value, place)
    enabled = flag_of(member(given, "enabled", place), f"{place}.enabled")
    config = object_of(member(given, "config", place), f"{place}.config")
    check_known(config, _CONFIGS.get(name, ()), f"{place}.config")
    return _Switch(enabled, config, f"{place}.config")


def _on(found: Mapping[str, _Switch], name: str) -> bool:
    return name in found and found[name].enabled


def _wrong(problem: str) -> InvalidArgument:
    return InvalidArgument(f"Validation error: schema: {problem}")


def _of_defaults(found: Mapping[str, _Switch]) -> frozenset[Index]:
    """The indexes that are off. Settings of those that cannot be on for all keys are checked and have no effect."""
    if _on(found, _FTS):
        raise _wrong("the full text index can only be enabled on #document, not by default")
    if _on(found, _VECTOR):
        raise _wrong("the vector index can only be enabled on #embedding, not by default")
    if _on(found, _SPARSE):
        raise _wrong("the sparse vector index can only be enabled on single keys, not by default")
    if _VECTOR in found:
        _graph_config(found[_VECTOR])
    if _SPARSE in found:
        _sparse_config(found[_SPARSE])
    return frozenset(index for index, (_, name) in _INVERTED.items() if name in found and not found[name].enabled)


def _of_document(found: Mapping[str, _Switch]) -> dict[Index, bool]:
    if _on(found, _INVERTED[Index.STRING][1]):
        raise _wrong("the string index cannot be enabled on #document")
    if set(found) - {_FTS, _INVERTED[Index.STRING][1]}:
        raise _wrong("#document has strings only")
    return {Index.SUBSTRING: False} if _FTS in found and not found[_FTS].enabled else {}


def _of_embedding(found: Mapping[str, _Switch]) -> _Switch | None:
    if set(found) - {_VECTOR}:
        raise _wrong("#embedding has vectors only")
    if _VECTOR in found and not found[_VECTOR].enabled:
        raise _wrong("the vector index of #embedding cannot be turned off")
    return found.get(_VECTOR)


def _of_key(key: str, found: Mapping[str, _Switch]) -> dict[Index, bool]:
    if key.startswith("#"):
        raise _wrong(f"keys that start with # are reserved: {key}")
    if _on(found, _FTS):
        raise _wrong(f"the full text index can only be enabled on #document, not on {key}")
    if _on(found, _VECTOR):
        raise _wrong(f"the vector index can only be enabled on #embedding, not on {key}")
    flags = {index: found[name].enabled for index, (_, name) in _INVERTED.items() if name in found}
    return {**flags, Index.SPARSE: found[_SPARSE].enabled} if _SPARSE in found else flags


def _graph_config(switch: _Switch) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Settings and embedding function of a vector index; of SPANN's settings none is kept."""
    config, place = switch.config, switch.place
    if config.get("source_key") not in (None, DOCUMENT_KEY):
        raise _wrong("the vector index can only have #document as its source_key")
    object_of(config.get("spann"), inside(place, "spann"))
    space = space_of(config.get("space"), inside(place, "space"))
    settings = hnsw_settings(config.get(HNSW), _HNSW_SETTINGS, inside(place, HNSW))
    function = function_of(config.get(FUNCTION), inside(place, FUNCTION))
    return {**({} if space is None else {"space": space}), **settings}, function


def _sparse_config(switch: _Switch) -> SparseConfig:
    config, place = switch.config, switch.place
    source, idf = config.get("source_key"), config.get("bm25")
    if config.get("algorithm") is not None:
        one_of(config["algorithm"], ("wand", "max_score"), inside(place, "algorithm"))
    return SparseConfig(
        idf=idf is not None and flag_of(idf, inside(place, "bm25")),
        source_key=None if source is None else text_of(source, inside(place, "source_key")),
        embedding_function=function_of(config.get(FUNCTION), inside(place, FUNCTION)),
    )
