"""One client process of the HTTP benchmark: runs in an environment that has ``chromadb`` and nothing of Shoal.

It reads one JSON command per line and answers each with one line: the seconds that each of its requests took, or what was asked for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 1000
K = 10
_INCLUDE = ["documents", "metadatas", "distances"]


class Client:
    """One connection to one server, and the data."""

    def __init__(self, port: int, data: Path) -> None:
        self.api = import_module("chromadb").HttpClient(host="127.0.0.1", port=port)
        self.base = np.load(data / "base.npy", mmap_mode="r")
        self.queries = np.load(data / "queries.npy")
        self.documents, self.metadatas = json.loads((data / "records.json").read_text())

    def create(self, name: str) -> None:
        """A collection."""
        self.api.create_collection(name, configuration={"hnsw": {"space": "cosine"}}, embedding_function=None)

    def drop(self, name: str) -> None:
        """Without it again."""
        self.api.delete_collection(name)

    def effort(self, name: str, ef: int) -> None:
        """Of graph searches."""
        self._collection(name).modify(configuration={"hnsw": {"ef_search": ef}})

    def add(self, name: str, start: int, end: int) -> list[float]:
        """Seconds of each batch."""
        collection = self._collection(name)

        def batch(at: int) -> Callable[[], Any]:
            part = slice(at, min(at + BATCH, end))
            return partial(
                collection.add,
                ids=[str(number) for number in range(part.start, part.stop)],
                embeddings=self.base[part],
                documents=self.documents[part],
                metadatas=self.metadatas[part],
            )

        return _timed(map(batch, range(start, end, BATCH)))

    def query(self, name: str, count: int, where: Any = None, offset: int = 0) -> list[float]:
        """Seconds of each query of one vector."""
        collection = self._collection(name)
        ask = partial(collection.query, n_results=K, where=where, include=_INCLUDE)
        chosen = [(offset + number) % len(self.queries) for number in range(count)]
        return _timed(partial(ask, query_embeddings=[self.queries[row]]) for row in chosen)

    def found(self, name: str, count: int, where: Any = None) -> list[list[int]]:
        """The rows that each of the first queries finds."""
        collection = self._collection(name)
        rows = collection.query(query_embeddings=self.queries[:count], n_results=K, where=where, include=[])["ids"]
        return [[int(id_) for id_ in row] for row in rows]

    def get(self, name: str, count: int, ids: int) -> list[float]:
        """Seconds of each get of so many ids."""
        collection = self._collection(name)
        rng = np.random.default_rng(0)
        choices = [[str(row) for row in rng.choice(len(self.base), ids, replace=False)] for _ in range(count)]
        return _timed(partial(collection.get, ids=chosen) for chosen in choices)

    def _collection(self, name: str) -> Any:
        return self.api.get_collection(name, embedding_function=None)


def _timed(calls: Iterable[Callable[[], Any]]) -> list[float]:
    times = []
    for call in calls:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


def main() -> None:
    """Entry point: port and folder of the data."""
    client = Client(int(sys.argv[1]), Path(sys.argv[2]))
    print("ready", flush=True)
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        print(json.dumps(getattr(client, verb)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
