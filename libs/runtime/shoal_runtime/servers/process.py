"""One server process under its guard, the lock on a directory, and the home that ties lock, ports and log together."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shoal_core.errors import FailedPrecondition, Unavailable
from shoal_runtime.servers import ports

T = TypeVar("T")

_GUARD = Path(__file__).with_name("guard.py")
_GUARD_START_TIMEOUT_S = 20.0
_POLL_S = 0.02
_LOG_TAIL_BYTES = 4096
_LOG_LIMIT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Account:
    """A user to run a server as: numeric ``uid`` and ``gid``."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How to run and how to end one server.

    Attributes:
        argv: absolute path of the program, then its arguments.
        cwd: entered before privileges are dropped, so its parents need not be traversable by ``account``.
        log_path: standard output and error are appended here.
        env: the whole environment of the server; nothing is inherited.
        account: whom to run as; None keeps the user.
        stop_signal: sent first, by `ServerProcess.stop` and when this process dies.
        stop_timeout_s: after this the server gets SIGKILL.
        death_signal: what the kernel sends if the guard itself is killed.
        keep_open: descriptors the server inherits, such as that of a `DirectoryLock`.
        unlink: files to remove after the server's end.
    """

    argv: tuple[str, ...]
    cwd: Path
    log_path: Path
    env: Mapping[str, str]
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 10.0
    death_signal: signal.Signals = signal.SIGKILL
    keep_open: tuple[int, ...] = ()
    unlink: tuple[Path, ...] = ()


class ServerProcess:
    """A server that runs under `guard` and never outlives this process. May be started again after its end.

    Bound to no event loop; not for use by two tasks at once.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._guard: subprocess.Popen[bytes] | None = None
        self._command: ServerCommand | None = None
        self._pidfd = -1
        self._pid = 0
        self._killed = False

    @property
    def pid(self) -> int:
        """Process id of the server itself; 0 if it was never started or has been stopped."""
        return self._pid

    @property
    def is_running(self) -> bool:
        """Whether the server's guard, and so the server, is there; False from `kill` on."""
        return not self._killed and self._guard is not None and self._guard.poll() is None

    async def start(self, command: ServerCommand) -> None:
        """Run ``command``. Returns once the process exists, not once it answers: see `wait_ready`.

        Raises `FailedPrecondition` if it runs already and `Unavailable` if it could not be run.
        """
        if self.is_running:
            raise FailedPrecondition(f"{self._name} runs already as process {self._pid}; stop it first")
        await uninterrupted(asyncio.to_thread(self._spawn, command))

    async def wait_ready(self, probe: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Wait until ``probe`` says True; an OSError of it means "not yet".

        Raises `Unavailable` with the tail of the log if the server ends first or ``timeout_s`` passes.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if not self.is_running:
                raise Unavailable(f"{self._name} ended while starting (exit code {self.exit_code}); {self.log_tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if await probe():
                    return
            if time.monotonic() > deadline:
                raise Unavailable(f"{self._name} is not ready after {timeout_s:g} s; {self.log_tail()}")
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """End the server by its stop signal, by SIGKILL after its stop time. Nothing to do if it is not running."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        assert self._command is not None
        self._guard.stdin.close()
        if not await self.wait_exit(self._command.stop_timeout_s + 5.0):
            self.kill()
            self._guard.kill()
            await self.wait_exit(5.0)
        self._forget()

    def kill(self) -> None:
        """SIGKILL the server itself, as a fault would, unless it has ended; `wait_exit` tells when it is gone."""
        if self._pidfd >= 0:
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait_exit(self, timeout_s: float) -> bool:
        """Wait for the end of server and guard; False if ``timeout_s`` passes first."""
        deadline = time.monotonic() + timeout_s
        while self._guard is not None and self._guard.poll() is None:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    @property
    def exit_code(self) -> int | None:
        """The server's exit code, or 128 plus the signal that ended it; None while it runs."""
        return None if self._guard is None else self._guard.poll()

    def log_tail(self) -> str:
        """Where the log is and its last 4 KiB, for error messages."""
        return "it was not started" if self._command is None else log_tail(self._command.log_path)

    def _spawn(self, command: ServerCommand) -> None:
        if self._guard is not None:  # of a server that was killed just now
            self._guard.wait()
        self._forget()
        status_read, status_write = os.pipe()
        argv = [sys.executable, "-I", "-S", str(_GUARD), *_guard_options(command, status_write), "--", *command.argv]
        try:
            with open(command.log_path, "ab") as log:
                self._guard = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=command.cwd,
                    env=dict(command.env),
                    pass_fds=(status_write, *command.keep_open),
                    start_new_session=True,  # so that Ctrl-C in a terminal reaches only this process, which then stops it
                )
            self._command = command
            os.close(status_write)
            status_write = -1
            self._pid = _read_pid(status_read)
            with contextlib.suppress(ProcessLookupError):  # it ended already, which its guard's exit code tells
                self._pidfd = os.pidfd_open(self._pid)
        except (OSError, ValueError) as error:
            if self._guard is not None:
                self._guard.kill()
                self._guard.wait()
                self._forget()
            raise Unavailable(f"{self._name} could not be started: {error}; {log_tail(command.log_path)}") from error
        finally:
            os.close(status_read)
            if status_write >= 0:
                os.close(status_write)

    def _forget(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard, self._pidfd, self._pid, self._killed = None, -1, 0, False


class DirectoryLock:
    """An exclusive lock on a directory: flock on its file ``LOCK``, which also holds the owner's pid.

    Processes that inherit `fileno` keep the directory locked until the last of them is gone: a server that is still
    stopping after its parent's crash still owns its data.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock without waiting, creating the directory (0700) if need be; no effect when held already.

        Raises `FailedPrecondition` naming the directory and the owner's pid when another holder has it.
        """
        if self._fd >= 0:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise FailedPrecondition(
                f"directory {self._directory} is in use by process {self.owner() or 'unknown'}; "
                "stop that process or choose another directory"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._fd = fd

    async def acquire_from_dead(self, timeout_s: float) -> None:
        """`acquire`, waiting up to ``timeout_s`` while the owner on record is dead and its servers are still ending."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.acquire()
            except FailedPrecondition:
                if _is_alive(self.owner()) or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL_S)

    def release(self) -> None:
        """Give the lock up. The file stays, so that nobody locks a file that is no longer there."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """The descriptor that holds the lock; -1 if it is not held."""
        return self._fd

    def owner(self) -> int:
        """Pid on record; 0 if there is none."""
        try:
            return int((self._directory / "LOCK").read_text())
        except (OSError, ValueError):
            return 0


class ServerHome:
    """The directory of one server: its lock, the ports it remembers, its log.

    Attributes:
        directory: absolute path.
        ports: by name, once `open` has returned; the same again at every later `open`.
    """

    def __init__(self, directory: Path, name: str, wanted: Mapping[str, int | None]) -> None:
        self.directory = directory.absolute()
        self.ports: dict[str, int] = {}
        self._name = name
        self._wanted = dict(wanted)
        self._lock = DirectoryLock(self.directory)

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self.directory / f"{self._name}.log"

    @property
    def lock_fd(self) -> int:
        """The descriptor that keeps the directory locked; servers inherit it."""
        return self._lock.fileno()

    async def open(self) -> None:
        """Lock the directory, choose ports, cut a log above 16 MiB.

        Raises `FailedPrecondition` if another process has the directory, `Unavailable` if a port that was asked for, or
        served before by this object, is taken by another process.
        """
        await self._lock.acquire_from_dead(timeout_s=30.0)
        if self.ports:
            return await self._wait_for_ports()
        path = self.directory / "ports.json"
        chosen = ports.remembered_ports(path, list(self._wanted))
        if not chosen or ports.busy_ports(chosen.values()):
            chosen = dict(zip(self._wanted, ports.free_ports(len(self._wanted)), strict=True))
        self.ports = chosen | {name: port for name, port in self._wanted.items() if port is not None}
        ports.remember_ports(path, self.ports)
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_LIMIT_BYTES:
            os.truncate(self.log_path, 0)
        return await self._wait_for_ports()

    def close(self) -> None:
        """Unlock the directory."""
        self._lock.release()

    async def _wait_for_ports(self) -> None:
        deadline = time.monotonic() + 3.0
        while busy := ports.busy_ports(self.ports.values()):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{self._name}: TCP port {busy[0]} on 127.0.0.1 is in use by another process; stop it"
                )
            await asyncio.sleep(_POLL_S)


async def uninterrupted(work: Awaitable[T]) -> T:
    """Await ``work`` to its end even when cancelled meanwhile: a thread that starts a process cannot be left half-way."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def bare_environment(home: Path) -> dict[str, str]:
    """The environment of a server: nothing of the caller's settings can leak into it (etcd and SeaweedFS read many)."""
    env = {"PATH": os.defpath, "HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C", "TZ": "UTC"}
    if "LD_LIBRARY_PATH" in os.environ:  # the interpreter that runs the guard may need it
        env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return env


def log_tail(path: Path) -> str:
    """Where the log is and its last 4 KiB."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace").strip()
    except OSError:
        text = "(nothing)"
    return f"the end of {path}:\n{text}"


def is_machine_program(path: Path) -> bool:
    """Whether ``path`` is an executable ELF file rather than a script that wraps one."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF" and os.access(path, os.X_OK)
    except OSError:
        return False


def http_request(
    method: str, port: int, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """One request to 127.0.0.1, without proxies, blocking for at most 10 s: (status, body). Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
    try:
        connection.request(method, target, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _guard_options(command: ServerCommand, status_fd: int) -> Sequence[str]:
    options = [
        f"parent={os.getpid()}",
        f"status={status_fd}",
        f"stop_signal={command.stop_signal.value}",
        f"death_signal={command.death_signal.value}",
        f"stop_timeout_s={command.stop_timeout_s}",
        *(f"unlink={path}" for path in command.unlink),
    ]
    if command.account is not None:
        options += [f"uid={command.account.uid}", f"gid={command.account.gid}"]
    return options


def _read_pid(status_fd: int) -> int:
    """The server's pid as the guard reports it; OSError if the guard ends or stays silent."""
    poll = select.poll()
    poll.register(status_fd, select.POLLIN)
    line = os.read(status_fd, 64) if poll.poll(_GUARD_START_TIMEOUT_S * 1000) else b""
    if not line.endswith(b"\n"):
        raise OSError("its guard did not report a process")
    return int(line)


def _is_alive(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").exists()
