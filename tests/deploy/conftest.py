"""A Helm, and the chart as it renders it."""

from __future__ import annotations

import pytest

from tests.deploy.chart import VALUES, Helm, Manifest, unpack_helm


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(unpack_helm(), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def rendered(helm: Helm) -> dict[str, list[Manifest]]:
    """Set of values → objects."""
    return {name: helm.template(*options) for name, options in VALUES.items()}


@pytest.fixture(params=VALUES)
def manifests(request: pytest.FixtureRequest, rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    """The objects of each set of values."""
    return rendered[request.param]
