"""The contract types of tools/import_rules.py, on graphs made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grimp import ImportGraph
from importlinter import Contract

from tools.import_rules import DeclaredContract, OnlyContract

PROJECT = """
[project]
name = "shoal-core"
dependencies = ["numpy>=2", "grpcio"]
[project.optional-dependencies]
more = ["shoal-wire[all]"]
[tool.hatch.build.targets.wheel]
packages = ["shoal_core"]
"""


def graph_of(*imports: tuple[str, str]) -> ImportGraph:
    graph = ImportGraph()
    for importer, imported in imports:
        graph.add_module(importer)
        graph.add_module(imported)
        graph.add_import(importer=importer, imported=imported)
    return graph


def broken_links(contract: Contract, graph: ImportGraph) -> list[tuple[str, str]]:
    check = contract.check(graph, False)
    found: list[tuple[str, str]] = check.metadata["found"]
    assert check.kept == (not found)
    return found


def test_only_the_allowed_packages() -> None:
    options: dict[str, Any] = {"package": "shoal_core", "allowed": ["numpy"]}
    contract = OnlyContract("core", {"root_packages": ["shoal_core"]}, options)
    graph = graph_of(
        ("shoal_core.a", "shoal_core.b"),
        ("shoal_core.a", "json"),
        ("shoal_core.a", "numpy"),
        ("shoal_core.b", "orjson"),
    )
    assert broken_links(contract, graph) == [("shoal_core.b", "orjson")]


def test_only_what_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "libs" / "core"
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    contract = DeclaredContract("declared", {"root_packages": ["shoal_core"]}, {"ignored": ["mypy_boto3_s3"]})
    kept = graph_of(
        ("shoal_core.a", "numpy"),
        ("shoal_core.a", "grpc"),
        ("shoal_core.a", "shoal_wire"),
        ("shoal_core.a", "mypy_boto3_s3"),
        ("shoal_core", "asyncio"),
    )
    assert broken_links(contract, kept) == []
    assert broken_links(contract, graph_of(("shoal_core.a", "pyarrow"), ("shoal_core.a", "shoal_index.ids"))) == [
        ("shoal_core.a", "pyarrow"),
        ("shoal_core.a", "shoal_index"),
    ]
