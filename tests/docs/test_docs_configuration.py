"""The reference of settings is current, and says all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal_runtime.config import describe
from tools import configuration_reference

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_reference_is_current_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert configuration_reference.main(["--check"]) == 0, capsys.readouterr().err
    text = PAGE.read_text(encoding="utf-8")
    assert [row.variable for row in describe() if f"`{row.variable}`" not in text] == []


def test_a_page_that_is_not_current_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration_reference, "PAGE", tmp_path / "configuration.md")
    assert configuration_reference.main(["--check"]) == 1
    assert configuration_reference.main([]) == 0
    assert configuration_reference.main(["--check"]) == 0
    assert len((tmp_path / "configuration.md").read_text().splitlines()) > 200


def test_what_is_called_a_path_is_one() -> None:
    paths = [row.name for row in describe() if row.type == "path"]
    assert [name for name in paths if not name.endswith(("path", "directory", "file"))] == []
