"""What the services promise each other, as plain data and protocols.

Each protocol has two implementations: the service itself (called directly when all run in one process) and a client over
gRPC (`shoal_wire.clients`). Both raise `shoal_core.errors`. Offsets count a collection's records from 1; a tail is
``(after, up_to]``; 0 means "before everything".
"""

from __future__ import annotations

from shoal_core.contracts.catalog import (
    Backlog,
    Catalog,
    Collection,
    Database,
    ExpiredUpload,
    GarbageCollection,
    GarbageRoots,
    Json,
    Lease,
    NewCollection,
    PublishRequest,
    VersionInfo,
)
from shoal_core.contracts.log import (
    EVERYTHING,
    AppendRequest,
    AppendResult,
    Condition,
    HashRange,
    Head,
    Log,
    Tail,
    TailEntry,
    TailRequest,
    shard_range,
)
from shoal_core.contracts.public import CollectionRef, IndexingStatus, PublicApi, WriteResult
from shoal_core.contracts.query import (
    Answer,
    CountAnswer,
    CountRequest,
    EncodedAnswer,
    GetRequest,
    Include,
    QueryNode,
    QueryRequest,
    Target,
)

__all__ = [
    "EVERYTHING",
    "Answer",
    "AppendRequest",
    "AppendResult",
    "Backlog",
    "Catalog",
    "Collection",
    "CollectionRef",
    "Condition",
    "CountAnswer",
    "CountRequest",
    "Database",
    "EncodedAnswer",
    "ExpiredUpload",
    "GarbageCollection",
    "GarbageRoots",
    "GetRequest",
    "HashRange",
    "Head",
    "Include",
    "IndexingStatus",
    "Json",
    "Lease",
    "Log",
    "NewCollection",
    "PublicApi",
    "PublishRequest",
    "QueryNode",
    "QueryRequest",
    "Tail",
    "TailEntry",
    "TailRequest",
    "Target",
    "VersionInfo",
    "WriteResult",
    "shard_range",
]
