"""Shoal's Python SDK.

    import numpy as np
    import shoal

    with shoal.connect("localhost:8800") as client:             # or "host1:8800,host2:8800", or path="./data"
        films = client.get_or_create_collection("films", space="cosine")

        films.add(
            ids=["jaws", "nemo"],
            documents=["A great white shark terrorises a town.", "A clownfish looks for his son."],
            metadatas=[{"year": 1975}, {"year": 2003}],
        )                                                        # embedded in the client by all-MiniLM-L6-v2
        print(films.query(query_texts="a lost fish", n_results=1, where={"year": {"$gte": 2000}}))

        vectors = np.random.default_rng(0).random((10_000, 384), dtype=np.float32)
        written = films.upsert(ids=[f"r{i}" for i in range(10_000)], embeddings=vectors, metadatas={"n": np.arange(10_000)})
        films.get(limit=3, consistency=shoal.session(written))   # sees at least that write

        nearest = shoal.Knn("a lost fish", limit=100, return_rank=True)
        words = shoal.Knn("lost fish", key="#document", limit=100, return_rank=True, default=1000)
        print(films.search(shoal.Search(rank=shoal.rrf([nearest, words]), limit=3)))

        with films.conditional() as txn:                         # writes only if what it read has not changed
            if not txn.get("dory").ids:
                txn.add(ids=["dory"], documents=["She forgets everything."])

        films.load(parquet_table, in_flight=8)                   # a large Arrow table, in batches
        films.wait_until_indexed()

Writes are atomic batches and are retried with one idempotency key; reads are strong unless ``consistency`` says otherwise.
Errors form one tree, `shoal.errors`; each names the field at fault and what to do. `shoal.aio` is the same for async code.
"""

from shoal import aio, embedding
from shoal._conditional import AsyncConditionalWrite, ConditionalWrite
from shoal._connect import EmbeddedSystem, tls_credentials
from shoal._consistency import INDEX_ONLY, AsOf, Session, as_of, bounded, session, unless_written_since
from shoal._results import GetResult, LoadResult, QueryResult, Record
from shoal._search import GroupBy, Knn, MaxK, MinK, Rank, Search, Val, rrf
from shoal._searches import SearchResult
from shoal._written import WriteResult
from shoal.aio import AsyncClient, AsyncCollection
from shoal.client import Client, connect
from shoal.collection import Collection
from shoal_core import errors
from shoal_core.consistency import STRONG, Consistency, ServedAt, VersionToken
from shoal_core.contracts import AttachedFunction, Condition, CountAnswer, IndexingStatus
from shoal_core.limits import Limits
from shoal_core.schema import Analyzer, Bm25, Index, Schema, SparseConfig, VectorConfig

__all__ = [
    "INDEX_ONLY",
    "STRONG",
    "Analyzer",
    "AsOf",
    "AsyncClient",
    "AsyncCollection",
    "AsyncConditionalWrite",
    "AttachedFunction",
    "Bm25",
    "Client",
    "Collection",
    "Condition",
    "ConditionalWrite",
    "Consistency",
    "CountAnswer",
    "EmbeddedSystem",
    "GetResult",
    "GroupBy",
    "Index",
    "IndexingStatus",
    "Knn",
    "Limits",
    "LoadResult",
    "MaxK",
    "MinK",
    "QueryResult",
    "Rank",
    "Record",
    "Schema",
    "Search",
    "SearchResult",
    "ServedAt",
    "Session",
    "SparseConfig",
    "Val",
    "VectorConfig",
    "VersionToken",
    "WriteResult",
    "aio",
    "as_of",
    "bounded",
    "connect",
    "embedding",
    "errors",
    "rrf",
    "session",
    "tls_credentials",
    "unless_written_since",
]
