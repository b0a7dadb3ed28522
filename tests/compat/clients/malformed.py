"""Wrong bodies for every route that takes one: made from the OpenAPI, and by damaging the bytes of right ones.

No request may fail with a server's error, or take long, and one that is refused must leave everything as it was: the databases and
collections there are, and how many operations the log has. ``SHOAL_HTTP``: host:port. Ends with status 1 and the requests for which
that did not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

_DATABASE = "/api/v2/tenants/default_tenant/databases/default_database"
_TIMEOUT_S = 20.0
_SHOWN = 5
_JSON = {"content-type": "application/json"}
# Parts of JSON to put anywhere: what parsers and databases stumble over.
_PARTS = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0.0",
    b"123456789012345678901234567890",
    b"0x10",
    b"01",
    b'"\\ud800"',
    b'"\\u0000"',
    b"\x00",
    b"\xff\xfe",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"[[[[[[[[[[",
    b"{" * 50,
    b'{"a":' * 2_000,
    b"[" * 50_000,
    b'"' + b"x" * 300_000 + b'"',
    b",,",
    b":",
    b"null",
    b"/* */",
    b"'single'",
    b"\\",
]


@dataclass(frozen=True)
class Call:
    """A request with a body, as bytes."""

    method: str
    route: str
    path: str
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.body[:500]!r}"


@dataclass
class Tally:
    """What a run saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    not_served: set[str] = field(default_factory=set)


class Target:
    """The server, and what it holds."""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=f"http://{address}", timeout=_TIMEOUT_S, trust_env=False)
        made = self._http.post(f"{_DATABASE}/collections", json={"name": "fishes", "get_or_create": True}).json()
        self.collection: str = made["id"]
        self._was = self.state()

    def openapi(self) -> dict[str, Any]:
        """The description."""
        return dict(self._http.get("/openapi.json").json())

    def state(self) -> Any:
        """Everything that a refused request must not change."""
        collections = self._http.get(f"{_DATABASE}/collections").json()
        kept = [{key: found[key] for key in found if key not in ("log_position", "version")} for found in collections]
        status = self._http.get(f"{_DATABASE}/collections/{self.collection}/indexing_status").json()
        databases = self._http.get("/api/v2/tenants/default_tenant/databases").json()
        return kept, status["total_ops"], databases

    def send(self, call: Call, tally: Tally) -> None:
        """Send it and look what became of it."""
        if call.route in tally.not_served:
            return
        try:
            answer = self._http.request(call.method, call.path, content=call.body, headers=_JSON)
        except httpx.HTTPError as error:
            tally.wrong.append(f"{call}\n  {error!r}")
            return
        if answer.status_code == 501:
            tally.not_served.add(call.route)
            return
        tally.statuses[answer.status_code] += 1
        tally.routes[call.route] += 1
        if answer.status_code >= 500:
            tally.wrong.append(f"{call}\n  {answer.status_code} {answer.text[:300]}")
        refused = answer.status_code >= 400
        if refused and answer.status_code != 413 and not {"error", "message"} <= answer.json().keys():
            tally.wrong.append(f"{call}\n  no error: {answer.text[:300]}")
        now = self.state()
        if refused and now != self._was:
            tally.wrong.append(f"{call}\n  {answer.status_code}, but it changed something: {self._was} -> {now}")
        self._was = now
        if self.collection not in {found["id"] for found in now[0]}:
            raise SystemExit(f"the collection is gone after {call}")

    def still_serves(self) -> bool:
        """Whether records can be written and found."""
        path = f"{_DATABASE}/collections"
        made = self._http.post(path, json={"name": "afterwards", "get_or_create": True}).json()["id"]
        records = {"ids": ["a", "b"], "embeddings": [[1, 0], [0, 1]]}
        added = self._http.post(f"{path}/{made}/upsert", json=records)
        found = self._http.post(f"{path}/{made}/query", json={"query_embeddings": [[1, 0]], "n_results": 1}).json()
        whole = self._http.post(f"{path}/{self.collection}/get", json={"limit": 10})
        return added.status_code == 200 and found["ids"] == [["a"]] and whole.status_code == 200


def main() -> int:
    """0 if all went well."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--generated", type=int, default=15, help="bodies of each route from its schema")
    parser.add_argument("--damaged", type=int, default=100, help="damaged bodies of each route with an example")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    target, tally = Target(os.environ["SHOAL_HTTP"]), Tally()
    openapi = target.openapi()
    for call in damaged(openapi, target.collection, Random(arguments.seed), arguments.damaged):
        target.send(call, tally)
    for call in generated(openapi, target.collection, arguments.generated):
        target.send(call, tally)
    if not target.still_serves():
        tally.wrong.append("afterwards it does not serve")
    summary = {
        "sent": tally.statuses.total(),
        "refused": sum(count for status, count in tally.statuses.items() if status >= 400),
        "statuses": dict(sorted(tally.statuses.items())),
        "routes": dict(tally.routes.most_common()),
        "not served": sorted(tally.not_served),
        "wrong": len(tally.wrong),
    }
    print(*tally.wrong[:_SHOWN], json.dumps(summary), sep="\n")
    return 1 if tally.wrong else 0


def target_of(path: str, collection: str) -> str:
    """A path of the description with things that exist."""
    values = {"tenant": "default_tenant", "database": "default_database", "collection": collection, "name": "function"}
    return path.format(**values)


def damaged(openapi: dict[str, Any], collection: str, random: Random, count: int) -> Iterator[Call]:
    """Right bodies with some bytes cut out, repeated, changed or put in; and the same with nothing but a wrong part."""
    schemas = openapi["components"]["schemas"]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            name = content.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
            for example in schemas.get(name, {}).get("examples", ()):
                body = json.dumps(example).encode()
                for _ in range(count):
                    yield Call(method.upper(), path, target_of(path, collection), damage(body, random))


def damage(body: bytes, random: Random) -> bytes:
    """One body, differently."""
    start = random.randrange(len(body))
    end = random.randrange(start, len(body))
    match random.randrange(6):
        case 0:
            return body[:start]
        case 1:
            return body[:start] + body[end:]
        case 2:
            return body[:end] + body[start:]
        case 3:
            return body[:start] + bytes([random.randrange(256)]) + body[start + 1 :]
        case 4:
            return random.choice(_PARTS)
    at = random.choice([place for place, byte in enumerate(body) if byte in b"[:,"]) + 1
    return body[:at] + random.choice(_PARTS) + b"," * (body[at - 1 : at] != b":") + body[at:]


def generated(openapi: dict[str, Any], collection: str, count: int) -> Iterator[Call]:
    """Bodies that the schemas do not allow, and some that they do."""
    for result in schemathesis.openapi.from_dict(openapi).get_all_operations():
        operation = result.ok()
        if operation.method.upper() not in ("POST", "PUT", "PATCH") or not operation.body:
            continue
        for mode, share in ((GenerationMode.NEGATIVE, count), (GenerationMode.POSITIVE, count // 5)):
            for body in bodies(operation, mode, share):
                yield Call(operation.method.upper(), operation.path, target_of(operation.path, collection), body)


def bodies(operation: Any, mode: GenerationMode, count: int) -> list[bytes]:
    """Of one route, always the same."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        found.append(case.body)

    collect()
    return [body if isinstance(body, bytes) else as_json(body) for body in found]


def as_json(body: Any) -> bytes:
    """What is no JSON value becomes a text."""
    return json.dumps(body, default=repr).encode()


if __name__ == "__main__":
    sys.exit(main())
