"""The guard, the lock and the ports, with plain child processes as servers."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from shoal_core.errors import FailedPrecondition, Unavailable
from shoal_runtime.servers import DirectoryLock, ServerCommand, ServerProcess, free_ports, ports
from shoal_runtime.servers.ports import busy_ports, remember_ports, remembered_ports
from shoal_runtime.servers.process import ServerHome, bare_environment

pytestmark = pytest.mark.integration

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)


def _command(tmp_path: Path, code: str, stop_timeout_s: float = 5.0) -> ServerCommand:
    return ServerCommand(
        argv=(sys.executable, "-I", "-S", "-c", code),
        cwd=tmp_path,
        log_path=tmp_path / "log",
        env=bare_environment(tmp_path),
        stop_timeout_s=stop_timeout_s,
    )


def _gone(pid: int, timeout_s: float = 5.0) -> bool:
    """Whether ``pid`` ends (or is a zombie) within the time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


async def _up(process: ServerProcess, tmp_path: Path) -> None:
    async def probe() -> bool:
        return "up" in (tmp_path / "log").read_text()

    await process.wait_ready(probe, 10.0)


async def test_stop_sends_the_stop_signal_and_reports_the_exit_code(tmp_path: Path) -> None:
    process = ServerProcess("sleeper")
    await process.start(_command(tmp_path, "import time; print('up', flush=True); time.sleep(60)"))
    await _up(process, tmp_path)
    pid = process.pid
    assert process.is_running
    started = time.monotonic()
    await process.stop()
    assert time.monotonic() - started < 3.0
    assert not process.is_running
    assert _gone(pid)


async def test_stop_kills_a_server_that_ignores_the_signal(tmp_path: Path) -> None:
    process = ServerProcess("stubborn")
    await process.start(_command(tmp_path, _STUBBORN, stop_timeout_s=0.2))
    await _up(process, tmp_path)
    pid = process.pid
    await process.stop()
    assert _gone(pid)


async def test_exit_codes_of_the_server_are_forwarded(tmp_path: Path) -> None:
    process = ServerProcess("exits")
    await process.start(_command(tmp_path, "raise SystemExit(7)"))
    assert await process.wait_exit(5.0)
    assert process.exit_code == 7
    await process.start(_command(tmp_path, _STUBBORN))
    process.kill()
    assert await process.wait_exit(5.0)
    assert process.exit_code == 128 + signal.SIGKILL
    await process.stop()


async def test_kill_of_the_guard_ends_the_server(tmp_path: Path) -> None:
    process = ServerProcess("stubborn")
    await process.start(_command(tmp_path, _STUBBORN))
    await _up(process, tmp_path)
    guard = _parent_of(process.pid)
    os.kill(guard, signal.SIGKILL)
    assert _gone(process.pid)
    await process.stop()


async def test_sigterm_to_the_guard_ends_the_server(tmp_path: Path) -> None:
    process = ServerProcess("sleeper")
    await process.start(_command(tmp_path, "import time; print('up', flush=True); time.sleep(60)"))
    await _up(process, tmp_path)
    guard = _parent_of(process.pid)
    os.kill(guard, signal.SIGTERM)
    assert await process.wait_exit(5.0)
    assert process.exit_code == 128 + signal.SIGTERM
    await process.stop()


def test_the_guard_sees_the_parents_end_though_a_forked_sibling_holds_its_pipe(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys, time\n"
        "from pathlib import Path\n"
        "from shoal_runtime.servers.process import ServerCommand, ServerProcess\n"
        "home = Path(sys.argv[1])\n"
        "process = ServerProcess('sleeper')\n"
        "code = 'import time; time.sleep(60)'\n"
        "command = ServerCommand((sys.executable, '-I', '-S', '-c', code), home, home / 'log', {})\n"
        "asyncio.run(process.start(command))\n"
        "sibling = os.fork()\n"
        "if sibling == 0:\n"
        "    time.sleep(60)\n"
        "print(process.pid, sibling, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=_env()) as parent:
        assert parent.stdout is not None
        server, sibling = map(int, parent.stdout.readline().split())
        parent.kill()
        parent.wait()
        try:
            assert _gone(server)
        finally:
            os.kill(sibling, signal.SIGKILL)


async def test_failure_to_start_shows_the_tail_of_the_log(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    process = ServerProcess("broken")
    await process.start(_command(tmp_path, "raise SystemExit('no such luck')"))
    with pytest.raises(Unavailable, match="no such luck"):
        await process.wait_ready(never, 10.0)
    await process.stop()
    await process.start(ServerCommand(("/no/such/program",), tmp_path, tmp_path / "log", {}))
    with pytest.raises(Unavailable, match="cannot run /no/such/program"):
        await process.wait_ready(never, 10.0)
    await process.stop()


async def test_a_server_that_ended_before_it_could_be_watched_is_told_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard may have reaped its child by the time that the child's pid arrives here."""

    async def never() -> bool:
        return False

    def too_late(_pid: int, _flags: int = 0) -> int:
        raise ProcessLookupError

    process = ServerProcess("brief")
    with monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", too_late)
        await process.start(_command(tmp_path, "raise SystemExit('that was all')"))
    process.kill()
    with pytest.raises(Unavailable, match=r"exit code 1\)(?s:.*)that was all"):
        await process.wait_ready(never, 10.0)
    await process.stop()


def test_a_second_process_is_refused_and_told_who_has_the_directory(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "data")
    lock.acquire()
    lock.acquire()
    script = (
        "import sys\nfrom pathlib import Path\nfrom shoal_runtime.servers import DirectoryLock\n"
        "DirectoryLock(Path(sys.argv[1])).acquire()\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "data")]
    refused = subprocess.run(argv, capture_output=True, text=True, env=_env())
    assert refused.returncode != 0
    assert f"directory {tmp_path / 'data'} is in use by process {os.getpid()}" in refused.stderr
    with pytest.raises(FailedPrecondition, match=str(os.getpid())):
        DirectoryLock(tmp_path / "data").acquire()
    lock.release()
    assert subprocess.run(argv, env=_env()).returncode == 0


async def test_a_home_remembers_its_ports_and_cuts_its_log(tmp_path: Path) -> None:
    home = ServerHome(tmp_path, "thing", {"a": None, "b": None})
    await home.open()
    ports = home.ports
    home.log_path.touch()
    os.truncate(home.log_path, 17 * 1024 * 1024)
    home.close()
    again = ServerHome(tmp_path, "thing", {"a": None, "b": None})
    await again.open()
    assert again.ports == ports
    assert again.log_path.stat().st_size == 0
    again.close()
    with socket.create_server(("127.0.0.1", ports["a"])):
        other = ServerHome(tmp_path, "thing", {"a": None, "b": None})
        await other.open()
        assert ports["a"] not in other.ports.values()
        other.close()
        wanted = ServerHome(tmp_path, "thing", {"a": ports["a"], "b": None})
        with pytest.raises(Unavailable, match=f"port {ports['a']}"):
            await wanted.open()
        wanted.close()


def test_free_ports_are_different_and_free(tmp_path: Path) -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert busy_ports(ports) == []
    with socket.create_server(("127.0.0.1", ports[0])):
        assert busy_ports(ports) == [ports[0]]
    path = tmp_path / "ports.json"
    remember_ports(path, {"x": ports[0]})
    assert remembered_ports(path, ["x"]) == {"x": ports[0]}
    assert remembered_ports(path, ["x", "y"]) == {}
    path.write_text("{torn")
    assert remembered_ports(path, ["x"]) == {}


def test_ports_just_given_out_are_not_given_to_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("shoal_runtime.servers.ports._ephemeral_start", lambda: 15_000 + 1_001)  # so few that they meet
    program = (
        "from shoal_runtime.servers import ports; ports._ephemeral_start = lambda: 16_001; print(ports.free_ports(300))"
    )
    other = subprocess.run([sys.executable, "-c", program], env=_env() | {"TMPDIR": str(tmp_path)}, capture_output=True)
    theirs = json.loads(other.stdout)
    assert not set(theirs) & set(free_ports(300))
    [path] = tmp_path.iterdir()
    assert set(theirs) < {int(port) for port in json.loads(path.read_text())}
    path.write_text(json.dumps(dict.fromkeys(range(15_000, 16_001), time.time() - 60)))
    assert free_ports(1), "it was long ago"
    path.write_text("{torn")
    assert free_ports(1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert free_ports(1)


def test_ports_that_the_kernel_chooses_are_not_given_out_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("shoal_runtime.servers.ports._ephemeral_start", lambda: 10_000)  # no room below
    first, bind = free_ports(1)[0], ports._bind
    chosen = iter([first])
    monkeypatch.setattr(ports, "_bind", lambda port: bind(next(chosen, port)))
    assert free_ports(1) != [first]


@pytest.mark.parametrize("call", ["fcntl.flock", "os.pwrite"])
def test_ports_are_chosen_where_nothing_can_be_told_to_others(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(f"shoal_runtime.servers.ports.{call}", fail)
    assert len(free_ports(3)) == 3


def test_a_process_that_was_stopped_while_it_chose_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ports, "_LOCK_TRIES", 2)
    free_ports(1)
    [path] = tmp_path.iterdir()
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert len(free_ports(3)) == 3


def _env() -> dict[str, str]:
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
