"""What the demo leaves behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rich.console import Console

from shoal_cli import demo
from shoal_core.errors import Unavailable


@pytest.fixture
def tour(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The system is a stand-in that makes the directory, and then raises what is in this list."""
    ends: list[BaseException] = []

    async def run_under(path: Path, records: int, cluster: int, console: Console) -> None:
        await asyncio.to_thread(path.mkdir, exist_ok=True)
        if ends:
            raise ends[0]

    monkeypatch.setattr(demo, "_run_under", run_under)
    return ends


async def test_it_removes_what_it_made(tmp_path: Path, tour: list[BaseException]) -> None:
    await demo.run(tmp_path / "new", 100, 0, keep=False)
    assert not (tmp_path / "new").exists()
    await demo.run(tmp_path / "new", 100, 0, keep=True)
    await demo.run(tmp_path / "new", 100, 0, keep=False)
    assert (tmp_path / "new").exists()


async def test_also_when_it_is_interrupted(tmp_path: Path, tour: list[BaseException]) -> None:
    tour.append(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await demo.run(tmp_path / "new", 100, 0, keep=False)
    assert not (tmp_path / "new").exists()


async def test_but_not_after_an_error(tmp_path: Path, tour: list[BaseException]) -> None:
    tour.append(Unavailable("no server"))
    with pytest.raises(Unavailable):
        await demo.run(tmp_path / "new", 100, 0, keep=False)
    assert (tmp_path / "new").exists()
