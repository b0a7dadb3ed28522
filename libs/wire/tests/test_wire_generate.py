"""The committed generated code is what the protos say."""

from __future__ import annotations

import importlib.util
import shutil
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


CHANGES = [
    ("reserved", "  string tenant = 3;\n", "  reserved 3;\n", ""),
    ("added", "  Condition condition = 6;\n", "  Condition condition = 6;\n  string later = 7;\n", ""),
    ("renamed", "  string tenant = 3;\n", "  string owner = 3;\n", ""),
    ("deleted", "  string tenant = 3;\n", "", 'field "3"'),
    ("reused", "  string tenant = 3;\n", "  double tenant = 3;\n", 'Field "3"'),
    ("call deleted", "  rpc ReadIndex(ReadIndexRequest) returns (Head);\n", "", "ReadIndex"),
]


@pytest.mark.parametrize(("old", "new", "said"), [change[1:] for change in CHANGES], ids=[each[0] for each in CHANGES])
def test_a_change_that_the_last_release_does_not_understand_is_found(
    generate: ModuleType, tmp_path: Path, old: str, new: str, said: str
) -> None:
    shutil.copytree(generate.PROTOS / "shoal", tmp_path / "shoal")
    assert generate.breaks(tmp_path, generate.PROTOS) == []
    log = tmp_path / "shoal" / "v1" / "log.proto"
    text = log.read_text()
    assert old in text
    log.write_text(text.replace(old, new, 1))
    found = generate.breaks(tmp_path, generate.PROTOS)
    assert (said in "".join(found)) if said else not found, found
