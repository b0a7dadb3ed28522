"""Contract types of our own for import-linter, which runs them from the root: see [tool.importlinter] in pyproject.toml."""

from __future__ import annotations

import itertools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class OnlyContract(Contract):
    """A package imports nothing but itself, the standard library and what is allowed.

    Options:
        - package: the root package.
        - allowed: other root packages and external ones.
    """

    type_name = "only"

    package = fields.StringField()
    allowed = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """See `Contract.check`."""
        package = str(self.package)
        found = [link for link in _external_imports(graph, package) if link[1] not in _texts(self.allowed)]
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """See `Contract.render_broken_contract`."""
        for importer, imported in check.metadata["found"]:
            output.print_error(
                f"{importer} imports {imported}; {self.package} may use only: {', '.join(_texts(self.allowed))}"
            )


class DeclaredContract(Contract):
    """Every package imports only what its own pyproject.toml names as a dependency.

    Options:
        - ignored: external packages of stubs, which exist for the type checker only.
    """

    type_name = "declared"

    ignored = fields.SetField(subfield=fields.StringField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """See `Contract.check`."""
        found = []
        roots = set(self.session_options["root_packages"])
        providers = packages_distributions()
        for package, declared in _declared_dependencies(Path.cwd()):
            for importer, imported in _external_imports(graph, package) if package in roots else ():
                wanted = {_normal(name) for name in providers.get(imported, [imported])}
                if imported not in _texts(self.ignored) and not wanted & declared:
                    found.append((importer, imported))
        return ContractCheck(kept=not found, metadata={"found": sorted(found)})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """See `Contract.render_broken_contract`."""
        for importer, imported in check.metadata["found"]:
            output.print_error(f"{importer} imports {imported}, which the pyproject.toml of its package does not name")


def _external_imports(graph: ImportGraph, package: str) -> list[tuple[str, str]]:
    """(module of ``package``, root of what it imports) for imports that leave the package and are no standard library."""
    links = {
        (module, imported.partition(".")[0])
        for module in graph.modules
        if module.partition(".")[0] == package
        for imported in graph.find_modules_directly_imported_by(module)
    }
    return sorted(link for link in links if link[1] != package and link[1] not in sys.stdlib_module_names)


def _declared_dependencies(root: Path) -> Iterator[tuple[str, set[str]]]:
    """(import name, normalised names of its dependencies, extras included) of each package of the workspace."""
    for path in sorted([*root.glob("libs/*/pyproject.toml"), *root.glob("services/*/pyproject.toml")]):
        settings: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        project = settings["project"]
        extras = project.get("optional-dependencies", {}).values()
        lines = itertools.chain(project["dependencies"], *extras)
        names = {_normal(match[0]) for line in lines if (match := _NAME.match(line))}
        yield settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"][0], names


def _texts(option: Any) -> list[str]:
    """The value of a set option: the class declares a field where an instance has its content."""
    return sorted(map(str, option or ()))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
