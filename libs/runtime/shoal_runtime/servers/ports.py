"""Loopback TCP ports for the servers, chosen once and remembered beside their data."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from shoal_core.errors import Unavailable

_LOOPBACK = "127.0.0.1"
_LOWEST = 15_000
_TRIES = 2_000
_LARGEST_BYTES = 1 << 20
_GIVEN_OUT_S = 30.0  # within which a server listens on the port that was chosen for it
_LOCK_TRIES, _LOCK_POLL_S = 40, 0.005  # others hold the lock for as long as choosing takes, unless they were stopped


def free_ports(count: int) -> list[int]:
    """``count`` different TCP ports that nothing on 127.0.0.1 uses; all are held at once while choosing.

    They lie below the kernel's ephemeral range where that leaves room: a client that keeps reconnecting to a server
    which is down could otherwise be given the server's own port as its source port and keep it from coming back.
    No other process of this user is given the same ones for half a minute, in which servers start to listen on them.
    Raises `Unavailable` when the machine has no port left.
    """
    highest = min(_ephemeral_start(), 32_768)
    held: dict[int, socket.socket] = {}
    with _given_out() as given_out:
        try:
            for _ in range(_TRIES):
                if len(held) == count:
                    given_out.update(dict.fromkeys(held, time.time()))
                    return list(held)
                candidate = _LOWEST + secrets.randbelow(highest - _LOWEST) if highest - _LOWEST > 1_000 else 0
                sock = _bind(candidate)
                if sock is None:
                    continue
                port = sock.getsockname()[1]
                if port in given_out:
                    sock.close()
                else:
                    held[port] = sock
        finally:
            for sock in held.values():
                sock.close()
    raise Unavailable(f"found no {count} free TCP ports on {_LOOPBACK}; stop some other servers")


def busy_ports(ports: Iterable[int]) -> list[int]:
    """Those of ``ports`` that cannot be listened on at 127.0.0.1 now."""
    busy = []
    for port in ports:
        sock = _bind(port)
        if sock is None:
            busy.append(port)
            continue
        sock.close()
    return busy


def remembered_ports(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Ports by name from the JSON file ``path``; empty if it is missing, damaged or names other ports."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or set(found) != set(names):
        return {}
    if not all(isinstance(port, int) and 0 < port < 65_536 for port in found.values()):
        return {}
    return {name: found[name] for name in names}


def remember_ports(path: Path, ports: dict[str, int]) -> None:
    """Write ``ports`` to the JSON file ``path``, atomically."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(ports, indent=1, sort_keys=True) + "\n")
    os.replace(fresh, path)


@contextmanager
def _given_out() -> Iterator[dict[int, float]]:
    """The ports that processes of this user chose a moment ago, and when, to be added to. They wait for one another, not long.

    They are told by a file among the temporary ones. Where there cannot be any, nothing is known of other processes.
    """
    descriptor = _locked(Path(tempfile.gettempdir(), f"shoal-ports-{os.getuid()}.json"))
    if descriptor is None:
        yield {}
        return
    try:
        since = time.time() - _GIVEN_OUT_S
        known = {port: moment for port, moment in _read(descriptor).items() if moment >= since}
        yield known
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(known).encode(), 0)
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """A descriptor of this user's file, locked until it is closed; None if that is not to be had soon."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    with suppress(OSError):
        for _ in range(_LOCK_TRIES if os.fstat(descriptor).st_uid == os.getuid() else 0):
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            time.sleep(_LOCK_POLL_S)
    os.close(descriptor)
    return None


def _read(descriptor: int) -> dict[int, float]:
    try:
        return {int(port): float(moment) for port, moment in json.loads(os.read(descriptor, _LARGEST_BYTES)).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # of a process that was killed while it wrote, for one
        return {}


def _bind(port: int) -> socket.socket | None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # As the servers do: connections of a former server in TIME_WAIT are no obstacle, a listener is.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((_LOOPBACK, port))
        sock.listen(1)
    except OSError as error:
        sock.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return None
        raise
    return sock


def _ephemeral_start() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
