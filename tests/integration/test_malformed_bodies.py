"""1,000 malformed bodies over HTTP: each is refused, quickly and with an error that says so, and writes nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat.runs import python
from tests.compat.servers import shoal_up

pytestmark = pytest.mark.integration


# What the server says that it does not serve, with 501.
@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="shoal-malformed-"))
    yield path
    shutil.rmtree(path)


async def test_malformed_bodies_are_refused_and_write_nothing(folder: Path) -> None:
    async with shoal_up(folder) as shoal:
        printed = await python("malformed.py", address=shoal.http, home=str(folder))
    summary = json.loads(printed.splitlines()[-1])
    assert summary["wrong"] == 0, printed
    assert summary["refused"] >= 1_000, printed
    assert summary["not served"] == [], printed
