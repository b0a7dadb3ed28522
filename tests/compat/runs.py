"""Tests and scripts in the environments of published clients, run as processes against a server's address."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.compat.servers import CLIENTS

_HERE = Path(__file__).parent
TIMEOUT_S = 270.0
_PASSED = re.compile(r"^# pass (\d+)$", re.MULTILINE)


async def python_tests(address: str, files: Mapping[str, int], environment: Mapping[str, str] | None = None) -> None:
    """Run files of ``clients/`` under the clients' own pytest.

    Args:
        files: by name, how many tests each has at least. All of them must pass.

    Raises:
        AssertionError: with what the run printed.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-clients-") as home:
        report = Path(home) / "report.xml"
        options = ["-c", "pytest.ini", "--confcutdir=.", "-q", "--tb=short", f"--junitxml={report}"]
        printed = await python("-m", "pytest", *options, *files, address=address, home=home, environment=environment)
        cases = [*ElementTree.parse(report).iter("testcase")]
    ran = [case.get("classname", "").rpartition(".")[2] for case in cases if not [*case]]
    few = {name: ran.count(name.removesuffix(".py")) for name, least in files.items() if ran.count(name[:-3]) < least}
    assert not few, f"fewer tests passed than there are: {few}\n{printed}"


async def python(
    *arguments: str,
    address: str,
    home: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """Run the clients' Python in ``clients/``; what it printed. Raises `AssertionError` with that for another status than 0."""
    interpreter = CLIENTS / "bin" / "python"
    assert interpreter.exists(), f"{interpreter} is missing: make clients"
    return await _run([str(interpreter), *arguments], _HERE / "clients", address, home, environment, timeout_s)


async def javascript_tests(
    address: str, files: Mapping[str, int], environment: Mapping[str, str] | None = None
) -> None:
    """As `python_tests`, of files of ``javascript/`` with Node's own test runner."""
    folder = _HERE / "javascript"
    assert (folder / "node_modules" / "chromadb").is_dir(), f"{folder}/node_modules is missing: make clients"
    with tempfile.TemporaryDirectory(prefix="shoal-clients-") as home:
        for name, least in files.items():
            command = ["node", "--test", "--test-reporter=tap", name]
            printed = await _run(command, folder, address, home, environment, TIMEOUT_S)
            passed = sum(map(int, _PASSED.findall(printed)))
            assert passed >= least, f"{name}: {passed} tests passed, there are {least}\n{printed}"


async def _run(
    command: Sequence[str],
    folder: Path,
    address: str,
    home: str,
    environment: Mapping[str, str] | None,
    timeout_s: float,
) -> str:
    # Without proxies, caches or settings of whoever runs this.
    plain = {"PATH": os.environ["PATH"], "HOME": home, "SHOAL_HTTP": address, "HAYSTACK_TELEMETRY_ENABLED": "False"}
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=folder,
        env={**plain, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-20_000:]}"
    return str(done.stdout)
