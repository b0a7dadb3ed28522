"""The committed generated code is what the protos say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "protos" / "generate.py"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shoal_protos_generate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_code_is_current(generate: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_drift_is_summed_up(generate: ModuleType) -> None:
    assert generate.drift({"a": "1\n"}, {"a": "1\n"}) == []
    assert generate.drift({"a": "1\n2\n", "b": ""}, {"a": "1\n3\n", "c": ""}) == [
        "a: 2 lines differ",
        "    -3",
        "    +2",
        "b: missing",
        "c: not generated from any proto",
    ]
