"""Generate `shoal_wire.v1` from the protos beside this file.

    python protos/generate.py            write libs/wire/shoal_wire/v1
    python protos/generate.py --check    fail if what is there differs from what the protos say, or they break with the last release
    python protos/generate.py --release  what the protos are now is what was released

The proto package is ``shoal.v1``, but ``shoal`` is the Python package of the SDK, so the generated modules live in
``shoal_wire.v1`` and their references to each other are rewritten. Messages only: servers and clients are made from the service
descriptors (`shoal_wire.server`, `shoal_wire.rpc`). ``baseline`` has the protos of the last release, which processes of this one
must understand and be understood by. Needs grpcio-tools, mypy-protobuf and buf, from the same environment as the interpreter that
runs this.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

PROTOS = Path(__file__).resolve().parent
BASELINE = PROTOS / "baseline"
TARGET = PROTOS.parent / "libs" / "wire" / "shoal_wire" / "v1"
INIT = '"""Generated from protos/shoal/v1 by protos/generate.py. Not edited by hand."""\n'
DIFF_LINES = 12

# Bytes stay readable on both sides, and no call goes away. Names of fields may change: nothing sends them.
BREAKING = {"version": "v2", "breaking": {"use": ["WIRE", "RPC_NO_DELETE", "SERVICE_NO_DELETE"]}}

# Imports, and module names in the builders.
_REWRITES = (
    (re.compile(r"^from shoal\.v1 import ", re.MULTILINE), "from shoal_wire.v1 import "),
    (re.compile(r"'shoal\.v1\.(\w+_pb2)'"), r"'shoal_wire.v1.\1'"),
)


def generate() -> dict[str, str]:
    """The generated files: name to text."""
    scripts = Path(sysconfig.get_path("scripts"))
    sources = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.glob("shoal/v1/*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        status = protoc.main(
            [
                "protoc",
                f"-I{PROTOS}",
                f"-I{resources.files('grpc_tools') / '_proto'}",
                f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
                f"--python_out={folder}",
                f"--mypy_out=quiet:{folder}",
                *sources,
            ]
        )
        if status != 0:
            raise SystemExit(f"protoc failed with status {status}")
        paths = sorted((Path(folder) / "shoal" / "v1").glob("*_pb2*.py*"))
        files = {path.name: _rewrite(path.read_text(encoding="utf-8")) for path in paths}
    return {"__init__.py": INIT, **files}


def _rewrite(text: str) -> str:
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def write(files: dict[str, str]) -> None:
    """Make the target folder hold exactly ``files``."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in present().keys() - files.keys():
        (TARGET / name).unlink()
    for name, text in files.items():
        (TARGET / name).write_text(text, encoding="utf-8")


def present() -> dict[str, str]:
    """The files that are there: name to text."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(TARGET.glob("*.py*"))}


def drift(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """Lines that sum up how ``found`` differs from ``wanted``; empty if it does not."""
    summary: list[str] = []
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            summary.append(f"{name}: missing")
        elif name not in wanted:
            summary.append(f"{name}: not generated from any proto")
        elif wanted[name] != found[name]:
            lines = list(difflib.unified_diff(found[name].splitlines(), wanted[name].splitlines(), lineterm="", n=0))[
                2:
            ]
            changed = [line for line in lines if line.startswith(("+", "-"))]
            summary.append(f"{name}: {len(changed)} lines differ")
            summary.extend(f"    {line[:110]}" for line in changed[:DIFF_LINES])
    return summary


def breaks(protos: Path = PROTOS, baseline: Path = BASELINE) -> list[str]:
    """What the protos below one folder break of those below the other: a line each."""
    buf = Path(sysconfig.get_path("scripts")) / "buf"
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # apart from each other, as buf takes one within the other for one module
        now, released = Path(folder) / "now", Path(folder) / "released"
        shutil.copytree(protos / "shoal", now / "shoal")
        shutil.copytree(baseline / "shoal", released / "shoal")
        command = [str(buf), "breaking", str(now), "--against", str(released), "--config", json.dumps(BREAKING)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line.replace(f"{now}/", "") for line in (done.stdout + done.stderr).splitlines()] if done.returncode else []


def release() -> None:
    """Keep the protos as those of the last release."""
    shutil.rmtree(BASELINE, ignore_errors=True)
    shutil.copytree(PROTOS / "shoal", BASELINE / "shoal")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description="Generate shoal_wire.v1 from the protos.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the generated code is out of date")
    parser.add_argument("--release", action="store_true", help="keep the protos as those of the last release")
    options = parser.parse_args(arguments)
    if options.release:
        release()
        return 0
    files = generate()
    if not options.check:
        write(files)
        return 0
    if differences := drift(files, present()):
        print("generated code is out of date, run `make protos`:", *differences, sep="\n", file=sys.stderr)
        return 1
    if broken := breaks():
        print(
            "the last release would not understand these protos, or not be understood:",
            *broken,
            sep="\n",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
