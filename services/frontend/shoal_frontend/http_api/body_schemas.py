"""JSON schemas of bodies, by name; `openapi` says which routes take them. The examples are accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal_core.contracts.functions import FUNCTIONS
from shoal_core.limits import Limits
from shoal_frontend.http_api.vector_shapes import SPACES, setting_ranges

Json = Mapping[str, Any]

_LIMITS = Limits()


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _or_nothing(schema: Json) -> Json:
    """Or null, or an empty object."""
    return {"anyOf": [schema, {"type": "null"}, {"type": "object", "maxProperties": 0}]}


def _list(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


def _object(properties: Mapping[str, Json], *required: str, **more: Any) -> Json:
    return {"type": "object", "properties": properties, "required": [*required], **more}


def _only(properties: Mapping[str, Json], *required: str, **more: Any) -> Json:
    return _object(properties, *required, additionalProperties=False, **more)


def _map(values: Json, **more: Any) -> Json:
    """Of metadata keys to values."""
    return {
        "type": "object",
        "additionalProperties": values,
        "propertyNames": {"pattern": "^[^#$]", "maxLength": _LIMITS.metadata_key_size_bytes},
        **more,
    }


def _each(names: Sequence[str], schema: Json) -> dict[str, Json]:
    """The same for several members."""
    return dict.fromkeys(names, schema)


def _one_of(**operators: Json) -> Json:
    """An object with exactly one of these operators, whose names start with a $."""
    named = {f"${name}": operand for name, operand in operators.items()}
    return _only(named, minProperties=1, maxProperties=1)


_STRING: Json = {"type": "string"}
_NUMBER: Json = {"type": "number"}
_FLAG: Json = {"type": "boolean"}
_COUNT: Json = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_PLACE: Json = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_SCALAR: Json = {"type": ["string", "number", "boolean"]}
_NAME: Json = {"type": "string", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]$"}
_IDS = _list(_STRING)
_TEXTS = _or_null(_list({"type": ["string", "null"]}))
_ROW = _list(_NUMBER, minItems=1)
_BASE64: Json = {"type": "string", "contentEncoding": "base64", "description": "of little-endian float32"}
_VECTORS: Json = {"anyOf": [_list(_ROW), _list(_BASE64)]}
_VECTORS_OR_NULLS: Json = {"anyOf": [_list(_or_null(_ROW)), _list(_or_null(_BASE64)), {"type": "null"}]}
_SELECTION: Mapping[str, Json] = {
    "ids": _or_null(_IDS),
    "where": _or_null(_ref("Where")),
    "where_document": _or_null(_ref("WhereDocument")),
}
_INCLUDE = _or_null(_list({"enum": ["distances", "documents", "embeddings", "metadatas", "uris"]}))
_GET: Mapping[str, Json] = {**_SELECTION, "limit": _or_null(_COUNT), "offset": _or_null(_COUNT), "include": _INCLUDE}
_VALUE: Json = {
    "anyOf": [_SCALAR, _list(_STRING), _list(_NUMBER), _list(_FLAG), _ref("SparseVector")],
}
_RECORD_EXAMPLE = {
    "ids": ["a", "b"],
    "embeddings": [[0.25, -1.0], [1.5, 2.0]],
    "documents": ["red fish", None],
    "uris": None,
    "metadatas": [{"color": "red", "n": 1, "tags": ["x", "y"]}, None],
}


def _records(embeddings: Json, metadata: str, *required: str) -> Json:
    columns = {
        "ids": _list({"type": "string", "minLength": 1}),
        "embeddings": embeddings,
        "documents": _TEXTS,
        "uris": _TEXTS,
        "metadatas": _or_null(_list(_or_null(_ref(metadata)))),
    }
    return _object(columns, *required, examples=[_RECORD_EXAMPLE])


# --- filters

_FILTERS: Mapping[str, Json] = {
    "Condition": {
        "anyOf": [
            _SCALAR,
            _one_of(
                **_each(("eq", "ne", "contains", "not_contains"), _SCALAR),
                **_each(("gt", "gte", "lt", "lte"), {"type": ["string", "number"]}),
                **_each(("in", "nin"), {"anyOf": [_list(kind, minItems=1) for kind in (_STRING, _NUMBER, _FLAG)]}),
                **_each(("regex", "not_regex"), _STRING),
                exists=_FLAG,
            ),
        ]
    },
    "Where": {
        "type": "object",
        "properties": {name: _list(_ref("Where"), minItems=1) for name in ("$and", "$or")},
        "additionalProperties": _ref("Condition"),
        "propertyNames": {"pattern": r"^([^#$]|\$and$|\$or$|#id$|#uri$|#document$)"},
        "minProperties": 1,
        "maxProperties": 1,
    },
    "WhereDocument": _one_of(
        **_each(("contains", "not_contains", "regex", "not_regex"), _STRING),
        **_each(("and", "or"), _list(_ref("WhereDocument"), minItems=1)),
    ),
}

# --- searches

_KEYS = _list({"type": "string", "minLength": 1}, minItems=1, maxItems=_LIMITS.group_by_keys)
_PAIR = _only({"left": _ref("Rank"), "right": _ref("Rank")}, "left", "right")
_RANKS = _list(_ref("Rank"), minItems=1)
_BEST = _only({"keys": _KEYS, "k": {"type": "integer", "minimum": 1}}, "keys", "k")
_KNN = _only(
    {
        "query": {"anyOf": [_ROW, _ref("SparseVector"), _STRING]},
        "key": _STRING,
        "limit": {"type": "integer", "minimum": 1, "maximum": _LIMITS.query_results},
        "default": _or_null(_NUMBER),
        "return_rank": _FLAG,
    },
    "query",
)
_SEARCHES: Mapping[str, Json] = {
    "Rank": _one_of(
        knn=_KNN,
        val=_NUMBER,
        **_each(("sum", "mul", "max", "min"), _RANKS),
        **_each(("sub", "div"), _PAIR),
        **_each(("abs", "exp", "log"), _ref("Rank")),
        rrf=_only(
            {"ranks": _RANKS, "k": _NUMBER, "weights": _or_null(_list(_NUMBER)), "normalize": _FLAG},
            "ranks",
        ),
    ),
    "GroupBy": _only({"keys": _KEYS, "aggregate": _one_of(min_k=_BEST, max_k=_BEST)}, "keys", "aggregate"),
    "Search": _only(
        {
            "filter": _or_null(
                {"type": "object", "description": "as Where; also an object with a list query_ids, or none"}
            ),
            "rank": _or_nothing(_ref("Rank")),
            "group_by": _or_nothing(_ref("GroupBy")),
            "limit": _or_null(_only({"offset": _or_null(_PLACE), "limit": _or_null(_COUNT)})),
            "select": _or_null(_only({"keys": _or_null(_list(_STRING, maxItems=_LIMITS.select_keys))})),
        }
    ),
    "ReadLevel": {"enum": ["index_and_wal", "index_only", "index_and_bounded_wal"]},
    "Searches": _object(
        {"searches": _list(_ref("Search"), maxItems=_LIMITS.searches), "read_level": _or_null(_ref("ReadLevel"))},
        "searches",
        examples=[
            {
                "searches": [
                    {
                        "filter": {"color": {"$ne": "blue"}},
                        "rank": {"$knn": {"query": [0.5, 1.0], "limit": 10}},
                        "group_by": {"keys": ["color"], "aggregate": {"$min_k": {"keys": ["#score"], "k": 1}}},
                        "limit": {"offset": 0, "limit": 5},
                        "select": {"keys": ["#document", "#score"]},
                    }
                ],
                "read_level": "index_and_wal",
            }
        ],
    ),
}

# --- collections

_RANGES = setting_ranges()


def _settings(*names: str) -> Json:
    """Of an HNSW index."""
    known: dict[str, Json] = {
        name: {"type": "integer", "minimum": least, "maximum": most} for name, (least, most) in _RANGES.items()
    }
    known |= {"space": {"enum": [*SPACES]}, "resize_factor": _NUMBER}
    return _only({name: _or_null(schema) for name, schema in known.items() if name in names or not names})


def _index(config: Json) -> Json:
    return _or_null(_object({"enabled": _FLAG, "config": config}, "enabled", "config"))


_FUNCTION = _or_null(_ref("EmbeddingFunction"))
_SPACE = _or_null({"enum": [*SPACES]})
_PLAIN = _index(_only({}))
_VECTOR_INDEX = _index(
    _only(
        {
            "space": _SPACE,
            "embedding_function": _FUNCTION,
            "source_key": {"enum": ["#document", None]},
            "hnsw": _or_null(_settings(*_RANGES, "resize_factor")),
            "spann": _or_null({"type": "object"}),
        }
    )
)
_SPARSE_INDEX = _index(
    _only(
        {
            "embedding_function": _FUNCTION,
            "source_key": {"type": ["string", "null"]},
            "bm25": {"type": ["boolean", "null"]},
            "algorithm": {"enum": ["wand", "max_score", None]},
        }
    )
)
_SPANN = {"space": _SPACE, **_each(("search_nprobe", "write_nprobe", "ef_construction", "ef_search"), {})}
_SPANN |= _each(("max_neighbors", "reassign_neighbor_count", "split_threshold", "merge_threshold"), {})
_COLLECTIONS: Mapping[str, Json] = {
    "EmbeddingFunction": {
        "anyOf": [
            _object({"type": {"enum": ["legacy", "unknown"]}}, "type"),
            _object({"type": {"enum": ["known"]}, "name": _STRING, "config": {}}, "type", "name", "config"),
        ]
    },
    "ValueTypes": _object(
        {
            "string": _or_null(_object({"fts_index": _PLAIN, "string_inverted_index": _PLAIN})),
            "float_list": _or_null(_object({"vector_index": _VECTOR_INDEX})),
            "sparse_vector": _or_null(_object({"sparse_vector_index": _SPARSE_INDEX})),
            **{kind: _or_null(_object({f"{kind}_inverted_index": _PLAIN})) for kind in ("int", "float", "bool")},
        }
    ),
    "Schema": _object(
        {
            "defaults": _or_null(_ref("ValueTypes")),
            "keys": _or_null({"type": "object", "additionalProperties": _or_null(_ref("ValueTypes"))}),
            "cmek": {"type": "null"},
        },
        "defaults",
        "keys",
    ),
    "NewCollection": _object(
        {
            "name": _NAME,
            "get_or_create": _FLAG,
            "metadata": _or_null(_map(_SCALAR, minProperties=1)),
            "configuration": _or_null(
                _object(
                    {
                        "hnsw": _or_null(_settings()),
                        "spann": _or_null(_only(_SPANN)),
                        "embedding_function": _FUNCTION,
                    }
                )
            ),
            "schema": _or_null(_ref("Schema")),
        },
        "name",
        examples=[
            {
                "name": "fishes",
                "get_or_create": True,
                "metadata": {"topic": "fish"},
                "configuration": {"hnsw": {"space": "cosine", "ef_search": 100}},
            }
        ],
    ),
    "CollectionChange": _object(
        {
            "new_name": _or_null(_NAME),
            "new_metadata": _or_null(_map(_or_null(_SCALAR), minProperties=1)),
            "new_configuration": _or_null(
                _object(
                    {
                        "hnsw": _or_null(
                            _settings(
                                "ef_search",
                                "max_neighbors",
                                "num_threads",
                                "sync_threshold",
                                "batch_size",
                                "resize_factor",
                            )
                        ),
                        "spann": _or_null(_only({"search_nprobe": {}, "ef_search": {}})),
                        "embedding_function": _FUNCTION,
                    }
                )
            ),
        },
        examples=[{"new_metadata": {"topic": "birds"}, "new_configuration": {"hnsw": {"ef_search": 200}}}],
    ),
    "Fork": _object({"new_name": _NAME}, "new_name", examples=[{"new_name": "fishes-copy"}]),
}

# --- functions attached to collections

_FUNCTIONS: Mapping[str, Json] = {
    "NewFunction": _object(
        {
            "name": {"type": "string", "minLength": 1, "maxLength": _LIMITS.function_name_size_bytes},
            "function_id": {"enum": [*FUNCTIONS]},
            "output_collection": _NAME,
            "params": _or_nothing({"type": "null"}),
        },
        "name",
        "function_id",
        "output_collection",
        examples=[
            {"name": "counts", "function_id": "statistics", "output_collection": "fishes-counts", "params": None}
        ],
    ),
    "FunctionInput": _object({"input_collection_id": _STRING}, "input_collection_id"),
    "Detachment": _object({"delete_output": _FLAG}),
}

# --- conditional reads and writes

_READ_TOKEN = _or_null({"type": "integer", "minimum": 0, "maximum": 2**64 - 1})


def _operation(name: str, payload: Json) -> Json:
    return _object({"operation": {"const": name}, "payload": payload}, "operation", "payload")


_CONDITIONAL: Mapping[str, Json] = {
    "ConditionalGet": _object(
        {**_GET, "read_token": _READ_TOKEN}, examples=[{"ids": ["a"], "include": ["documents"], "read_token": None}]
    ),
    "Commit": _object(
        {
            "read_token": _READ_TOKEN,
            "read_ids": _or_null(_IDS),
            "operations": _list(
                {
                    "anyOf": [
                        _operation("add", _ref("NewRecords")),
                        _operation("update", _ref("RecordChanges")),
                        _operation("upsert", _ref("UpsertedRecords")),
                        _operation("delete", _ref("Deletion")),
                        _operation("get", _object({**_GET, "expected_ids": _or_null(_IDS)})),
                    ]
                }
            ),
        },
        "operations",
        examples=[
            {
                "read_ids": [],
                "operations": [
                    {"operation": "upsert", "payload": {"ids": ["a"], "embeddings": [[0.5, 1.0]], "documents": ["eel"]}}
                ],
            }
        ],
    ),
}

SCHEMAS: Mapping[str, Json] = {
    "Error": _object({"error": _STRING, "message": _STRING}, "error", "message"),
    "NewTenant": _object(
        {"name": {"type": "string", "minLength": _LIMITS.tenant_name_min_size_bytes}},
        "name",
        examples=[{"name": "aquarium"}],
    ),
    "TenantChange": _object({"resource_name": _STRING}, "resource_name", examples=[{"resource_name": "aquarium-1"}]),
    "NewDatabase": _object({"name": _NAME}, "name", examples=[{"name": "tanks"}]),
    **_COLLECTIONS,
    "SparseVector": _only(
        {
            "#type": {"enum": ["sparse_vector"]},
            "indices": _list({"type": "integer", "minimum": 0, "maximum": 2**32 - 1}),
            "values": _list(_NUMBER),
            "tokens": {},
        },
        "#type",
        "indices",
        "values",
    ),
    "Metadata": _map(_VALUE),
    "MetadataChange": _map(_or_null(_VALUE), description="null deletes a key"),
    "NewRecords": _records(_VECTORS, "Metadata", "ids", "embeddings"),
    "UpsertedRecords": _records(_VECTORS, "MetadataChange", "ids", "embeddings"),
    "RecordChanges": _records(_VECTORS_OR_NULLS, "MetadataChange", "ids"),
    **_FILTERS,
    "Get": _object(
        _GET,
        examples=[
            {
                "ids": None,
                "where": {"$or": [{"color": "red"}, {"n": {"$gte": 2}}]},
                "where_document": {"$contains": "fish"},
                "limit": 10,
                "offset": 0,
                "include": ["documents", "metadatas"],
            }
        ],
    ),
    "Query": _object(
        {**_SELECTION, "query_embeddings": _VECTORS, "n_results": _or_null(_COUNT), "include": _INCLUDE},
        "query_embeddings",
        examples=[{"query_embeddings": [[0.5, 1.0]], "n_results": 3, "where": {"n": {"$in": [1, 2]}}}],
    ),
    "Deletion": _object(
        {**_SELECTION, "limit": _or_null(_COUNT)},
        examples=[{"ids": ["a", "b"], "where": {"color": "red"}, "limit": 5}],
    ),
    **_SEARCHES,
    **_FUNCTIONS,
    **_CONDITIONAL,
}

# Where the server embeds, texts may stand for vectors.
WITH_TEXTS: Mapping[str, Json] = {
    "NewRecords": _records(_VECTORS_OR_NULLS, "Metadata", "ids"),
    "UpsertedRecords": _records(_VECTORS_OR_NULLS, "MetadataChange", "ids"),
    "Query": _object(
        {
            **_SELECTION,
            "query_embeddings": _or_null(_VECTORS),
            "query_texts": _or_null(_list(_STRING)),
            "n_results": _or_null(_COUNT),
            "include": _INCLUDE,
        },
        examples=[{"query_texts": ["a fish that lives on land"], "n_results": 3}],
    ),
}
