"""``shoal demo``: the whole system on real text, from nothing to answers."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from shoal import aio
from shoal._results import QueryResult
from shoal.embedding import MiniLM
from shoal_cli.local_cluster import ClusterPlan, LocalCluster
from shoal_cli.up import embedded_server
from shoal_cli.wordnet import read_glosses
from shoal_core.contracts import IndexingStatus
from shoal_runtime.logs import configure_logging

_BATCH = 500
_QUESTIONS: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("a large animal with a trunk", None),
    ("feeling of deep sadness", None),
    ("to move quickly on foot", {"pos": "verb"}),
    ("something you wear on your head", {"domain": "noun.artifact"}),
)
_LATE = ("shoal-1", "shoal: a large group of fish that swim together, or of vectors that are searched together")


async def run(path: Path, records: int, cluster: int, *, keep: bool) -> None:
    """Start the system under ``path``, load glosses, ask, and stop it again.

    A directory that it made is removed at the end, also after Ctrl-C; after an error it stays, for its logs.
    """
    configure_logging("ERROR", as_json=False)
    console = Console()
    existed = await asyncio.to_thread(path.exists)
    try:
        await _run_under(path, records, cluster, console)
    except asyncio.CancelledError:
        if not keep and not existed:
            shutil.rmtree(path, ignore_errors=True)
        raise
    if not keep and not existed:
        await asyncio.to_thread(shutil.rmtree, path)


async def _run_under(path: Path, records: int, cluster: int, console: Console) -> None:
    started = time.monotonic()
    if cluster:
        console.print(f"Starting Postgres, etcd, an S3 server and a cluster with {cluster} query nodes under {path} …")
        running = LocalCluster(ClusterPlan(path, querynodes=cluster))
        await running.start()
        try:
            console.print(f"[green]Up[/] after {time.monotonic() - started:.1f} s: {len(running.roles)} processes.")
            await _tour(console, ",".join(running.frontends), records)
        finally:
            console.print("Stopping everything that was started.")
            await running.stop()
    else:
        console.print(f"Starting everything in one process under {path} …")
        async with embedded_server(path, "127.0.0.1:0") as (address, _):
            console.print(f"[green]Up[/] after {time.monotonic() - started:.1f} s.")
            await _tour(console, address, records)


async def _tour(console: Console, address: str, records: int) -> None:
    async with await aio.connect(address, timeout_ms=120_000) as client:
        collection = await client.get_or_create_collection("glosses", space="cosine", shards=2)
        glosses = await asyncio.to_thread(read_glosses, None, records)
        if await collection.count() < glosses.num_rows:
            await _load(console, collection, glosses)
        console.print(f"{await collection.count():,} glosses of WordNet, with part of speech and lexical domain.\n")
        for question, where in _QUESTIONS:
            await _ask(console, collection, question, where)
        console.print("A record is visible to the next read, before anything is compacted:")
        await collection.upsert([_LATE[0]], documents=[_LATE[1]], metadatas=[{"pos": "noun", "domain": "noun.group"}])
        await _ask(console, collection, "many fish together", None)


async def _load(console: Console, collection: aio.AsyncCollection, glosses: pa.Table) -> None:
    """Embed and write batch by batch: the next one is embedded while the last one is written."""
    embed = MiniLM()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    total = glosses.num_rows
    started = time.monotonic()
    with Progress(*columns, console=console) as progress:
        loading = progress.add_task("Embed and write", total=total)
        writing: asyncio.Task[Any] | None = None
        for start in range(0, total, _BATCH):
            part = glosses.slice(start, _BATCH)
            texts = part.column("text").to_pylist()
            vectors = await asyncio.to_thread(embed.embed_documents, texts)
            if writing is not None:
                await writing
            metadatas = {name: part.column(name) for name in ("pos", "domain", "word_count")}
            ids = part.column("id").to_pylist()
            writing = asyncio.create_task(
                collection.upsert(ids, embeddings=vectors, documents=texts, metadatas=metadatas)
            )
            progress.update(loading, completed=min(start + _BATCH, total))
        if writing is not None:
            await writing
        loaded = time.monotonic() - started
        indexing = progress.add_task("Compact and index", total=total)

        def indexed(status: IndexingStatus) -> None:
            progress.update(indexing, completed=status.indexed_offset, total=status.head_offset)

        await collection.wait_until_indexed(timeout_s=300, on_progress=indexed)
        progress.update(indexing, completed=total, total=total)
    console.print(
        f"Embedded and wrote {total:,} glosses in {loaded:.1f} s ({total / loaded:,.0f} a second, mostly embedding)."
    )


async def _ask(console: Console, collection: aio.AsyncCollection, question: str, where: dict[str, Any] | None) -> None:
    embed = MiniLM()
    started = time.monotonic()
    vector = await asyncio.to_thread(embed.embed_queries, [question])
    embedded = time.monotonic()
    found = await collection.query(
        query_embeddings=vector,
        n_results=5,
        where=where,
        include=("documents", "metadatas", "distances"),
        explain=True,
    )
    answered = time.monotonic()
    condition = f" where {where}" if where else ""
    table = Table(
        title=f"“{question}”{condition}", title_justify="left", title_style="bold", show_edge=False, pad_edge=False
    )
    for name, style in (("distance", "cyan"), ("meaning", ""), ("domain", "magenta"), ("from", "dim")):
        table.add_column(name, style=style, overflow="ellipsis", no_wrap=name != "meaning", max_width=84)
    rows = found.query(0)
    origins = found.to_arrow().column("origin").to_pylist() if "origin" in found.to_arrow().column_names else []
    assert rows.distances is not None
    assert rows.documents is not None
    assert rows.metadatas is not None
    for number, (distance, text, metadata) in enumerate(
        zip(rows.distances, rows.documents, rows.metadatas, strict=True)
    ):
        origin = ("segment", "tail")[origins[number]] if origins else ""
        table.add_row(f"{distance:.3f}", text, str(metadata.get("domain", "")), origin)
    console.print(table)
    console.print(
        f"[dim]{_where_from(found)}; embedding {_ms(embedded - started)}, answer {_ms(answered - embedded)}[/]\n"
    )


def _where_from(found: QueryResult) -> str:
    """Which nodes answered, from how many segments and tail records."""
    shards = (found.explain or {}).get("shards", [])
    segments = sum(len(shard["segments"]) for shard in shards)
    tail = sum(shard["tail"]["records"] for shard in shards)
    nodes = ", ".join(sorted({shard["node"] for shard in shards}))
    return f"{len(shards)} shards on {nodes}; {segments} segments and {tail} tail records, at offset {found.served_at.offset}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
