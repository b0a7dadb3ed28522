"""What `deploy/telemetry`, the runbook and `docs/telemetry.md` say, taken apart for tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "telemetry" / "alerts.yaml"
DASHBOARD = ROOT / "deploy" / "telemetry" / "dashboard.json"
RUNBOOK = ROOT / "docs" / "runbook.md"
PAGE = ROOT / "docs" / "telemetry.md"

# All that expressions may consist of besides metrics: a word that is none of these and no metric is a mistake.
_FUNCTIONS = frozenset({"rate", "increase", "histogram_quantile", "absent", "vector"})
_AGGREGATIONS = frozenset({"sum", "max", "min", "avg", "count"})
_OPERATORS = frozenset({"and", "or", "unless"})
_SELECTOR = re.compile(r'\{(?:\s*[a-z_]+\s*(?:=~|!~|!=|=)\s*"[^"]*"\s*,?)*\}')
_RANGE = re.compile(r"\[(?:[0-9]+[smhd]|\$__rate_interval)\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\([a-z_, ]*\)")
_WORD = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_REST = re.compile(r"[0-9.()+\-*/<>=!,\s]*")
_LABELS = r'(?:\{(?:[^"}]|"[^"]*")*\})?'
_SAMPLE = re.compile(rf"^([A-Za-z_:][A-Za-z0-9_:]*){_LABELS} ", re.MULTILINE)


def rule_groups() -> list[dict[str, Any]]:
    """The groups of the rules file."""
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return groups


def rules(kind: str) -> list[dict[str, Any]]:
    """Rules with the key ``kind``: ``alert`` or ``record``."""
    return [rule for group in rule_groups() for rule in group["rules"] if kind in rule]


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels that show something."""
    every: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in every if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """All PromQL: of rules and panels."""
    yield from (rule["expr"] for group in rule_groups() for rule in group["rules"])
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


def metrics_of(expression: str) -> set[str]:
    """The series that an expression reads, by name. Raises `ValueError` for what it does not understand."""
    bare = _GROUPING.sub(" ", _RANGE.sub(" ", _SELECTOR.sub(" ", expression)))
    if not _REST.fullmatch(_WORD.sub(" ", bare)):
        raise ValueError(f"this is more than is read here: {expression!r}")
    return set(_WORD.findall(bare)) - _FUNCTIONS - _AGGREGATIONS - _OPERATORS


def runbook_anchors() -> set[str]:
    """The anchors of the runbook's entries."""
    return {title.lower() for title in re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE)}


def documented() -> dict[str, str]:
    """The metrics of the page's tables, and their kinds."""
    return dict(re.findall(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|", PAGE.read_text(), re.MULTILINE))


def exported(page: str) -> dict[str, str]:
    """The metrics of a metrics page that have samples, and their kinds."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    samples = series(page)
    return {name: kind for name, kind in kinds.items() if name in samples or f"{name}_bucket" in samples}


def series(page: str) -> set[str]:
    """The names of a metrics page's samples."""
    return set(_SAMPLE.findall(page))


def value(page: str, name: str) -> float:
    """The sum over a series; -1 if it is not there."""
    found = re.findall(rf"^{name}{_LABELS} (\S+)$", page, re.MULTILINE)
    return sum(map(float, found)) if found else -1.0
