"""A genuine server of the reference system and Shoal answer the same random requests of the Python client the same.

``SIDE_BY_SIDE="--requests 50000 --seed 7"`` runs longer, or others.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat.runs import python
from tests.compat.servers import genuine_server, shoal_up

pytestmark = pytest.mark.integration

DIFFERENCES = Path(__file__).parents[1] / "compat" / "differences.md"
ARGUMENTS = os.environ.get("SIDE_BY_SIDE", "--requests 1500 --seed 1").split()


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="shoal-side-by-side-"))
    (path / "shoal").mkdir()
    (path / "genuine").mkdir()
    yield path
    shutil.rmtree(path)


def listed() -> set[str]:
    """The names in the first column of the table of what the comparison passes over."""
    _, _, section = DIFFERENCES.read_text().partition("## Side by side")
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
    return set(rows[2:])


@pytest.mark.timeout(3_600)
async def test_the_same_requests_have_the_same_answers(folder: Path) -> None:
    async with shoal_up(folder / "shoal") as shoal, genuine_server(folder / "genuine") as genuine:
        script = ["side_by_side.py", *ARGUMENTS]
        printed = await python(
            *script, address=shoal.http, home=str(folder), environment={"GENUINE_HTTP": genuine}, timeout_s=3_500
        )
    summary = json.loads(printed.splitlines()[-1])
    assert summary["unknown differences"] == 0, printed
    assert summary["requests"] >= int(ARGUMENTS[ARGUMENTS.index("--requests") + 1])
    assert set(summary["known differences"]) <= listed()
    missed = summary["known differences"].get("nearest records that the index does not find", 0)
    assert missed * 20 <= summary["methods"]["query"], printed  # its graph differs from run to run
    methods = {"add", "upsert", "update", "delete", "get", "query", "count", "modify", "create_collection"}
    assert methods <= set(summary["methods"])


async def test_every_known_difference_is_in_the_table(folder: Path) -> None:
    script = "import known_differences as known; print(*known.NAMES, sep='\\n')"
    printed = await python("-c", script, address="", home=str(folder))
    assert set(printed.splitlines()) == listed()
