"""The same random requests to a genuine server and to Shoal, through the Python client; the answers must be the same.

``SHOAL_HTTP`` and ``GENUINE_HTTP``: host:port. What may differ is in `KNOWN`; the table in ``../differences.md`` says why. Ends with
status 1 and the first answers that differ otherwise; the seed and the number of the round repeat them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import chromadb
import numpy as np
from chromadb.config import Settings
from known_differences import MISSED, as_shoal_says
from random_requests import Request, Requests

_ROUND_REQUESTS = 60
_TOLERANCE = 1e-5
_SHOWN = 5
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COLUMNS = ("ids", "documents", "metadatas", "uris", "embeddings")


@dataclass
class Seen:
    """What a run saw."""

    requests: int = 0
    errors: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)


def main() -> int:
    """0 if nothing differs but what is known."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--round", type=int, help="only this one")
    arguments = parser.parse_args()
    genuine, shoal = (connected(os.environ[name]) for name in ("GENUINE_HTTP", "SHOAL_HTTP"))
    seen = Seen()
    rounds = range(-(-arguments.requests // _ROUND_REQUESTS)) if arguments.round is None else [arguments.round]
    for number in rounds:
        play(genuine, shoal, arguments.seed, number, seen)
        if len(seen.unknown) >= _SHOWN:
            break
    summary = {
        "requests": seen.requests,
        "refused": seen.errors,
        "methods": dict(seen.methods.most_common()),
        "known differences": dict(seen.known.most_common()),
        "unknown differences": len(seen.unknown),
    }
    print(*seen.unknown[:_SHOWN], json.dumps(summary), sep="\n")
    return 1 if seen.unknown else 0


def connected(address: str) -> Any:
    """A client."""
    host, _, port = address.rpartition(":")
    return chromadb.HttpClient(host=host, port=int(port), settings=Settings(anonymized_telemetry=False))


def play(genuine: Any, shoal: Any, seed: int, number: int, seen: Seen) -> None:
    """One round: a collection on either side from its creation to its end."""
    random = Random(f"{seed}/{number}")
    space = random.choice(["l2", "cosine", "ip"])
    requests = Requests(random, random.randint(2, 6), random.random() < 0.4, random.choice([8, 30, 80]))
    name = f"side-{seed}-{number}"
    create = {"configuration": {"hnsw": {"space": space}}, "metadata": {"round": number}, "embedding_function": None}
    pair = [client.create_collection(name, **create) for client in (genuine, shoal)]
    for step in range(_ROUND_REQUESTS):
        request = requests.next() if random.random() < 0.94 else catalog_request(random, name)
        theirs, ours = (outcome(client, found, request) for client, found in zip((genuine, shoal), pair, strict=True))
        seen.requests += 1
        seen.methods[request.method] += 1
        seen.errors += "error" in theirs
        reworded, known = as_shoal_says(request, theirs, ours)
        seen.known.update(known)
        if same(request, reworded, ours, requests.whole):
            continue
        if request.method == "query" and not {"error"} & (theirs.keys() | ours.keys()):
            reworded = exact(pair[0], request, space, theirs)
            seen.known[MISSED] += 1
        if not same(request, reworded, ours, requests.whole):
            place = f"seed {seed} round {number} step {step} ({space})"
            seen.unknown.append(f"{place}: {request}\n  genuine: {theirs}\n  Shoal:   {ours}")
            break  # what follows may follow from it
    shoal.delete_collection(name)  # not the genuine one: the lists of its metadata would turn up in the next collection


def catalog_request(random: Random, name: str) -> Request:
    """A request about collections rather than about records of one."""
    choices: list[Callable[[], Request]] = [
        lambda: Request("create_collection", {"name": name, "embedding_function": None}),
        lambda: Request(
            "create_collection", {"name": random.choice(["a", "-no", "no..no"]), "embedding_function": None}
        ),
        lambda: Request("get_collection", {"name": name, "embedding_function": None}),
        lambda: Request("get_collection", {"name": "nothing-of-that-name"}),
        lambda: Request("get_or_create_collection", {"name": name, "metadata": {"x": 1}, "embedding_function": None}),
        lambda: Request("delete_collection", {"name": "nothing-of-that-name"}),
        lambda: Request("modify", {"metadata": {"k": random.randint(0, 9), "s": random.choice(["x", "y"])}}),
        lambda: Request("modify", {"configuration": {"hnsw": {"ef_search": random.randint(10, 99)}}}),
    ]
    return random.choice(choices)()


def outcome(client: Any, collection: Any, request: Request) -> dict[str, Any]:
    """The answer as plain data, or the error's type and message. Ids of collections are the server's own."""
    target = client if request.method.endswith("_collection") else collection
    try:
        answer = getattr(target, request.method)(**request.arguments)
    except Exception as error:
        return {"error": type(error).__name__, "message": _ID.sub("<id>", str(error))}
    if isinstance(answer, chromadb.Collection):
        hnsw = answer.configuration["hnsw"]
        return {
            "name": answer.name,
            "metadata": answer.metadata,
            "space": hnsw["space"],
            "ef_search": hnsw["ef_search"],
        }
    if not isinstance(answer, dict):
        return {"answer": answer}
    return {key: plain(value) for key, value in answer.items() if key != "included"}


def exact(genuine: Any, request: Request, space: str, theirs: dict[str, Any]) -> dict[str, Any]:
    """What the reference system's own records say the answer is, without its index."""
    selection = {key: value for key, value in request.arguments.items() if key in ("ids", "where", "where_document")}
    got = genuine.get(**selection, include=["documents", "metadatas", "uris", "embeddings"])
    records = {name: plain(got[name]) for name in _COLUMNS}
    answer: dict[str, Any] = {key: None if value is None else [] for key, value in theirs.items()}
    for query in request.arguments["query_embeddings"]:
        far = distances(space, np.array(query), np.array(got["embeddings"]).reshape(-1, len(query)))
        nearest = np.argsort(far, kind="stable")[: request.arguments["n_results"]]
        for name, column in answer.items():
            if column is not None:
                values = far.tolist() if name == "distances" else records[name]
                column.append([values[at] for at in nearest])
    return answer


def distances(space: str, query: Any, vectors: Any) -> Any:
    """(n,) float64."""
    dots = vectors @ query
    if space == "l2":
        return ((vectors - query) ** 2).sum(axis=1)
    if space == "ip":
        return 1 - dots
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return 1 - np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)


def plain(value: Any) -> Any:
    """Lists and numbers of Python."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def same(request: Request, theirs: dict[str, Any], ours: dict[str, Any], ties_are_likely: bool) -> bool:
    """Whether two answers say the same."""
    if request.method != "query" or "error" in theirs or "error" in ours:
        return equal(theirs, ours)
    if theirs.keys() != ours.keys() or len(theirs["ids"]) != len(ours["ids"]):
        return False
    return all(same_hits(theirs, ours, row, ties_are_likely) for row in range(len(theirs["ids"])))


def equal(one: Any, other: Any) -> bool:
    """Equal with their types: 1 is not 1.0, and neither is True. Embeddings to five digits: the reference system keeps those of a
    cosine space with length 1.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same_vectors(value, other[key]) if key == "embeddings" else equal(value, other[key])
            for key, value in one.items()
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def same_hits(theirs: dict[str, Any], ours: dict[str, Any], row: int, ties_are_likely: bool) -> bool:
    """One query's: distances in order, and for each distance the same records, in any order. Where ties are likely, the limit may have
    left either side others of those at the largest distance.
    """
    if theirs["distances"] is None:
        return set(theirs["ids"][row]) == set(ours["ids"][row]) or bool(ours["ids"][row])
    near, far = theirs["distances"][row], ours["distances"][row]
    if len(near) != len(far) or not all(map(close, near, far)):
        return False
    for start, end in ties(near):
        if ties_are_likely and end == len(near):
            continue
        if not equal(records(theirs, row, start, end), records(ours, row, start, end)):
            return False
    return True


def same_vectors(one: Any, other: Any) -> bool:
    """Lists of lists of numbers, or None."""
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and all(
        len(a) == len(b) and all(map(close, a, b)) for a, b in zip(one, other, strict=True)
    )


def close(one: float, other: float) -> bool:
    """To five digits."""
    return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def ties(distances: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Ranges of equal distances."""
    start = 0
    for at in range(1, len(distances) + 1):
        if at == len(distances) or not close(distances[at - 1], distances[at]):
            yield start, at
            start = at


def records(answer: dict[str, Any], row: int, start: int, end: int) -> dict[str, Any]:
    """All that is said of some hits, in order of their ids."""
    order = sorted(range(start, end), key=answer["ids"][row].__getitem__)
    return {name: [answer[name][row][at] for at in order] for name in _COLUMNS if answer[name] is not None}


if __name__ == "__main__":
    sys.exit(main())
