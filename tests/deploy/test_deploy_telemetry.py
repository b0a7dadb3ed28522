"""Alert rules and dashboard are well-formed, and every alert has its entry in the runbook.

Whether what they name is exported is seen on a cluster: `tests/integration/test_telemetry.py`.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.deploy import telemetry_files as files

_DURATION = re.compile(r"[0-9]+[smh]")
_TEMPLATE = re.compile(r"\{\{ \$(?:value \| \w+|labels\.(\w+)) \}\}")


def test_groups_have_names_and_rules_have_one_kind() -> None:
    groups = files.rule_groups()
    assert all(set(group) == {"name", "rules"} and group["rules"] for group in groups)
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)
    for group in groups:
        assert all(("alert" in rule) != ("record" in rule) for rule in group["rules"])


def test_names_are_given_once_and_recorded_ones_have_levels() -> None:
    for kind in ("alert", "record"):
        names = [rule[kind] for rule in files.rules(kind)]
        assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"shoal:[a-z_]+:[a-z0-9_]+", rule["record"]) for rule in files.rules("record"))
    assert all(set(rule) == {"record", "expr"} for rule in files.rules("record"))


@pytest.mark.parametrize("rule", files.rules("alert"), ids=lambda rule: str(rule["alert"]))
def test_an_alert_is_whole(rule: dict[str, object]) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Shoal[A-Z]\w+", str(rule["alert"]))
    assert _DURATION.fullmatch(str(rule["for"]))
    labels, annotations = rule["labels"], rule["annotations"]
    assert isinstance(labels, dict)
    assert isinstance(annotations, dict)
    assert labels.keys() == {"severity"}
    assert labels["severity"] in ("warning", "critical")
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert all(annotations.values())
    assert annotations["runbook_url"] == f"docs/runbook.md#{str(rule['alert']).lower()}"
    assert str(rule["alert"]).lower() in files.runbook_anchors()
    text = f"{annotations['summary']} {annotations['description']}"
    assert "{{" not in _TEMPLATE.sub("", text)
    used = {name for name in _TEMPLATE.findall(text) if name}
    kept = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", _expanded(str(rule["expr"]))))))
    assert used <= kept  # a label that was summed away would be empty


def _expanded(expression: str) -> str:
    """With what recorded names stand for."""
    recorded = {rule["record"]: rule["expr"] for rule in files.rules("record")}
    return " ".join([expression, *(recorded[name] for name in files.metrics_of(expression) if name in recorded)])


def test_the_runbook_has_no_entry_without_an_alert() -> None:
    assert files.runbook_anchors() == {rule["alert"].lower() for rule in files.rules("alert")}


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(files.DASHBOARD.read_text())
    (datasource,) = dashboard["templating"]["list"]
    assert (datasource["name"], datasource["type"], datasource["query"]) == ("datasource", "datasource", "prometheus")
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert titles == ["Is it up?", "Is it fast?", "Is it fresh?", "Is it full?", "Is it right?", "Is it safe?"]
    for panel in files.panels():
        assert panel["title"]
        assert panel["targets"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(files.DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells


def test_expressions_are_understood_and_balanced() -> None:
    for expression in files.expressions():
        assert files.metrics_of(expression)
        assert expression.count("(") == expression.count(")")


def test_what_is_no_metric_is_noticed() -> None:
    assert files.metrics_of('sum by (le) (rate(a_bucket{x=~"b|c"}[5m])) / on (x) d') == {"a_bucket", "d"}
    assert files.metrics_of("smu(a)") == {"smu", "a"}
    with pytest.raises(ValueError, match="more than is read"):
        files.metrics_of("a{b='c'}")
