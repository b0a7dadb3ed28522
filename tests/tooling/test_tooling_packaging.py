"""The packages, their pins and their tools agree with each other."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = sorted([*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")])
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def settings_of(project: Path) -> Mapping[str, Any]:
    return tomllib.loads(project.read_text(encoding="utf-8"))


def module_of(project: Path) -> str:
    name: str = settings_of(project)["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"][0]
    return name


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {normal(match[1]): match[2] for line in lines if (match := PIN.match(line))}


def test_every_package_of_the_workspace_has_a_project() -> None:
    folders = {path.parent.parent for path in [*ROOT.glob("libs/*/*/py.typed"), *ROOT.glob("services/*/*/py.typed")]}
    assert folders == {project.parent for project in PROJECTS}
    assert len(PROJECTS) == 15


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_a_package_is_complete(project: Path) -> None:
    package = project.parent / module_of(project)
    assert (package / "__init__.py").is_file()
    assert (package / "py.typed").is_file()


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_what_a_package_names_is_pinned(project: Path) -> None:
    settings = settings_of(project)["project"]
    own = {normal(settings_of(each)["project"]["name"]) for each in PROJECTS}
    lines = [
        *settings["dependencies"],
        *(line for extra in settings.get("optional-dependencies", {}).values() for line in extra),
    ]
    names = {normal(match[1]) for line in lines if (match := REQUIREMENT.match(line))}
    assert names - own - pins().keys() == set()


def test_every_pin_has_hashes_and_nothing_has_an_address() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    blocks = re.split(r"\n(?=\S)", text)[1:]
    assert len(blocks) == len(pins())
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_what_clients_need_is_pinned_without_an_address() -> None:
    text = (ROOT / "tests" / "compat" / "clients.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\S)", text)[1:]
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    lock = (ROOT / "tests" / "compat" / "javascript" / "package-lock.json").read_text(encoding="utf-8")
    assert "://" not in text + lock
    packages = [package for name, package in json.loads(lock)["packages"].items() if name]
    assert all(package["integrity"].startswith("sha512-") for package in packages)


def test_the_root_lists_every_package() -> None:
    settings = settings_of(ROOT / "pyproject.toml")["tool"]
    modules = {module_of(project) for project in PROJECTS}
    assert set(settings["importlinter"]["root_packages"]) == modules
    assert set(settings["mypy"]["packages"]) == modules
    assert set(settings["ruff"]["lint"]["isort"]["known-first-party"]) == modules
    assert settings["uv"]["sources"].keys() == {settings_of(project)["project"]["name"] for project in PROJECTS}


def test_mypy_is_as_strict_about_tests() -> None:
    root = settings_of(ROOT / "pyproject.toml")["tool"]["mypy"]
    tests = settings_of(ROOT / "tools" / "mypy-tests.toml")["tool"]["mypy"]
    assert {name: tests[name] for name in tests.keys() - {"mypy_path", "exclude"}} == {
        name: root[name] for name in root.keys() - {"mypy_path", "packages"}
    }
