"""What tests of the kernels share."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal_index.vector import native


def levels() -> list[str]:
    """Of the kernels that this CPU can run."""
    names = [
        path.name.split(".")[0].removeprefix("_kernels_") for path in Path(native.__file__).parent.glob("_kernels_*.so")
    ]
    return sorted(name for name in names if name != "cpu" and name <= native.level())


@pytest.fixture(params=levels())
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Kernels of this level are in use."""
    name = str(request.param)
    loaded = native.load(name)
    monkeypatch.setattr(native, "_loaded", lambda: loaded)
    return name
