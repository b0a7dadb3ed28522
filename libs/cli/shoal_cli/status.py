"""``shoal status``: members, collections with a backlog; as JSON also the limits."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from shoal import aio
from shoal_cli.reach import credentials_of_command


async def show(address: str, *, as_json: bool, token: str = "") -> None:
    """Ask a frontend and print."""
    async with await aio.connect(
        address, timeout_ms=10_000, token=token, credentials=credentials_of_command()
    ) as client:
        status = await client.status()
    if as_json:
        print(json.dumps(status, indent=2, sort_keys=True))
        return
    console = Console()
    if not status["registry"]["connected"]:
        console.print("[yellow]The registry cannot be reached: this is the last known view.[/]")
    members = Table("role", "member", "address", title="Members", title_justify="left")
    for role, found in sorted(status["members"].items()):
        for member in found:
            members.add_row(role, member["id"], member["address"])
    console.print(members)
    backlog = Table(
        "collection", "records to compact", "bytes", "oldest", "version", title="Backlog", title_justify="left"
    )
    for item in status["backlog"]:
        waiting = item["head_offset"] - item["compacted_offset"]
        name = f"{item['tenant']}/{item['database']}/{item['collection']}"
        backlog.add_row(
            name,
            f"{waiting:,}",
            f"{item['uncompacted_bytes']:,}",
            f"{item['age_ms'] / 1000:.1f} s",
            str(item["version"]),
        )
    console.print(backlog if status["backlog"] else "No collection waits for compaction.")
