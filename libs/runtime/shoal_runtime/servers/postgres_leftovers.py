"""What a Postgres that was killed leaves behind, and how to be rid of it: orphaned backends, shared memory, a pid file."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

from shoal_core.errors import FailedPrecondition


def remove_leftovers(pgdata: Path) -> None:
    """After a crash: wait for (then end) orphaned backends, free the shared memory, remove a stale pid file; blocking.

    Call it with the directory's lock held. With no process in the data directory the pid file is then stale by proof,
    whatever process may have its number now. Raises `FailedPrecondition` if a postmaster not started here is at work.
    """
    pid_file = pgdata / "postmaster.pid"
    deadline = time.monotonic() + 3.0
    while pids := processes_in(pgdata):
        if time.monotonic() > deadline:
            lines = pid_file.read_text().splitlines() if pid_file.exists() else []
            if lines and int(lines[0]) in pids:
                raise FailedPrecondition(f"postgres process {lines[0]} still serves {pgdata}; stop it")
            kill_all(pids)
            deadline += 3.0
        time.sleep(0.01)
    if not pid_file.exists():
        return
    lines = pid_file.read_text().splitlines()
    if len(lines) >= 7 and len(ids := lines[6].split()) == 2:
        # Freed only if nobody is attached; errors mean that it is gone or not ours.
        _free_shared_memory(key=int(ids[0]), segment=int(ids[1]))
    pid_file.unlink()


def processes_in(pgdata: Path) -> list[int]:
    """Pids of the postgres processes whose working directory is ``pgdata``: postmaster and backends alike."""
    try:
        wanted = pgdata.stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            info = os.stat(f"/proc/{entry}/cwd")
            same = (info.st_dev, info.st_ino) == (wanted.st_dev, wanted.st_ino)
            if same and os.path.basename(os.readlink(f"/proc/{entry}/exe")).startswith("postgres"):
                found.append(int(entry))
    return found


def kill_all(pids: list[int]) -> None:
    """SIGKILL; those that are gone already are fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _free_shared_memory(key: int, segment: int) -> None:
    """Remove the System V segment of a postmaster that was killed, unless the number belongs to another one now."""
    libc = ctypes.CDLL(None)
    if libc.shmget(key, 0, 0) == segment:
        libc.shmctl(segment, 0, None)  # IPC_RMID
