"""What the pages refer to is there: files, headings, tests and settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shoal_runtime.config import Config, describe

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md"), ROOT / "tests/compat/differences.md"]
)
OPERATING = [ROOT / "docs" / name for name in ("install.md", "operate.md", "failures.md", "versions.md")]


def _prose(page: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", OPERATING, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    sources = [path for folder in ("libs", "services", "tests") for path in (ROOT / folder).rglob("test_*.py")]
    known = {path.name for path in sources if "node_modules" not in path.parts}
    for path in sources:
        known.update(re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8")))
    named = re.findall(r"`(?:tests/[a-z/]+/)?(test_[\w.]+)`", _prose(page))
    assert [name for name in named if name not in known] == []


@pytest.mark.parametrize("page", OPERATING, ids=lambda page: page.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    known = {row.name for row in describe()}
    sections = {name.rpartition(".")[0] for name in known}
    named = re.findall(rf"`((?:{'|'.join(Config.model_fields)})\.[a-z_0-9.]+)`", _prose(page))
    assert [name for name in named if name not in known | sections] == []
