"""``shoal recall``: what recall costs in a collection, what its records get, and what live queries got."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from shoal import aio
from shoal.aio_collection import AsyncCollection
from shoal_cli.reach import credentials_of_command
from shoal_core.errors import FailedPrecondition

TARGETS = (0.9, 0.95, 0.99)
KS = (1, 10, 100)

_PAGES = 10  # that the sampled records come from, spread over the collection
_K = 10  # for which recall is measured


@dataclass(frozen=True)
class Step:
    """One target for one k: how each segment is searched for it, and the estimate of the least of them."""

    recall: float
    k: int
    segments: tuple[Mapping[str, Any], ...]
    estimated: float | None


@dataclass(frozen=True)
class Report:
    """What is known of one collection.

    Attributes:
        measured: by target, the recall@10 of sampled records as queries, themselves left out.
        observed: by shard, what live queries got; None where none were asked again.
    """

    collection: str
    records: int
    sampled: int
    curve: tuple[Step, ...]
    measured: Mapping[float, float]
    observed: Mapping[int, Mapping[str, Any] | None]


async def show(
    address: str, name: str, *, tenant: str, database: str, token: str = "", sample: int = 100, as_json: bool = False
) -> None:
    """Ask a frontend and print. Raises `FailedPrecondition` for a collection without vectors."""
    credentials = credentials_of_command()
    async with await aio.connect(
        address, tenant=tenant, database=database, token=token, credentials=credentials
    ) as client:
        report = await look(await client.get_collection(name), sample)
    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return
    console = Console()
    console.print(f"{report.collection}: {report.records:,} records, {report.sampled} of them asked")
    curve = Table("k", "recall", "estimated", "segments: how, effort", title="What it takes", title_justify="left")
    for step in report.curve:
        estimated = "not measured" if step.estimated is None else f"{step.estimated:.3f}"
        curve.add_row(str(step.k), f"{step.recall:g}", estimated, _segments(step))
    console.print(curve)
    measured = Table("recall asked", f"recall@{_K} of records", title="Measured now", title_justify="left")
    for target, recall in report.measured.items():
        measured.add_row(f"{target:g}", f"{recall:.3f}")
    console.print(measured)
    for shard, found in report.observed.items():
        if found is not None:
            console.print(
                f"shard {shard}: live queries got {found['observed']:.3f} in {found['checks']} checks; "
                f"{found['factor']:g} of what they may miss is asked of the graphs"
            )


async def look(collection: AsyncCollection, sample: int) -> Report:
    """What is known of a collection. Raises `FailedPrecondition` where it has no vectors."""
    records = await collection.count()
    ids, vectors = await _sampled(collection, records, sample)
    curve, observed = [], {}
    for k in KS:
        for target in TARGETS:
            found = await collection.query(vectors[:1], n_results=k, recall=target, include=(), explain=True)
            assert found.explain is not None
            shards = found.explain["shards"]
            segments = [segment for shard in shards for segment in shard["segments"]]
            curve.append(Step(target, k, tuple(map(_brief, segments)), found.recall))
            observed = {shard["shard"]: shard["recall"] for shard in shards}
    true = await collection.query(vectors, n_results=_K + 1, exact=True, include=())
    measured = {}
    for target in TARGETS:
        found = await collection.query(vectors, n_results=_K + 1, recall=target, include=())
        measured[target] = _recall(ids, found.ids, true.ids)
    return Report(collection.name, records, len(ids), tuple(curve), measured, observed)


async def _sampled(collection: AsyncCollection, records: int, sample: int) -> tuple[list[str], Any]:
    """Ids and (n, dim) vectors of records from all over the collection."""
    ids: list[str] = []
    vectors = []
    for page in range(_PAGES):
        limit = -(-sample // _PAGES)
        found = await collection.get(limit=limit, offset=records * page // _PAGES, include=["embeddings"])
        if found.embeddings is None or not len(found):
            continue
        there = [number for number in range(len(found)) if found.ids[number] not in ids]
        ids += [found.ids[number] for number in there]
        vectors.append(np.asarray(found.embeddings)[there])
    if not ids:
        raise FailedPrecondition(f"the collection {collection.name!r} has no vectors; there is no recall to speak of")
    return ids[:sample], np.concatenate(vectors)[:sample]


def _brief(segment: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: segment[name] for name in ("id", "rows", "strategy", "effort", "recall")}


def _segments(step: Step) -> str:
    if not step.segments:
        return "none yet: every record is compared"
    return ", ".join(
        f"{segment['strategy']} {segment['effort']}" if segment["effort"] else str(segment["strategy"])
        for segment in step.segments
    )


def _recall(asked: list[str], found: list[list[str]], true: list[list[str]]) -> float:
    """The mean share of the true neighbours, the record itself left out, that were found."""
    shares = []
    for own, near, best in zip(asked, found, true, strict=True):
        wanted = set([name for name in best if name != own][:_K])
        if wanted:
            shares.append(len(wanted & set(near)) / len(wanted))
    return float(np.mean(shares)) if shares else 1.0
