"""A tiny supervisor: runs one server as its child and never lets it outlive the process that asked for it.

    python -I -S guard.py key=value ... -- command ...

The guard ends its child when its standard input reaches end of file (the parent closed it, or died in any way), when the
parent's pidfd reports its exit (covers a pipe that a forked sibling still holds open), or on SIGTERM. It sends the stop
signal first and SIGKILL once the stop time is over. Should the guard itself be killed, the kernel sends the child its
death signal (``PR_SET_PDEATHSIG``; safe here because the guard has one thread). The exit code is the child's, or 128 plus
the number of the signal that ended it.

Keys: ``parent`` (pid to watch), ``status`` (descriptor that receives the child's pid in decimal and a line feed),
``stop_signal``, ``death_signal`` (numbers), ``stop_timeout_s``, ``uid`` and ``gid`` (drop to these before exec),
``unlink`` (a file to remove after the end; may be given several times).

Only the standard library, nothing of Shoal, and no import that costs time: one guard starts per server.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: list[str]) -> int:
    """Run the command after ``--`` and return the exit code to forward."""
    split = argv.index("--")
    pairs = [item.split("=", 1) for item in argv[:split]]
    options = dict(pairs)
    command = argv[split + 1 :]
    wake = _catch_signals()
    parent = int(options["parent"])
    parent_fd = _watch(parent)
    if os.getppid() != parent:
        return 1
    libc = ctypes.CDLL(None, use_errno=True)
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, options, libc, guard)
    _report(int(options["status"]), child)
    code = _supervise(child, wake, parent_fd, int(options["stop_signal"]), float(options["stop_timeout_s"]))
    for path in (value for key, value in pairs if key == "unlink"):
        with contextlib.suppress(OSError):
            os.unlink(path)
    return code


def _catch_signals() -> int:
    """Turn signals into bytes on a pipe, so that one poll waits for everything; returns its read end."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    os.set_blocking(read_end, False)
    signal.set_wakeup_fd(write_end)
    for number in (*_STOP_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return read_end


def _watch(pid: int) -> int:
    """A descriptor that becomes readable when ``pid`` exits; -1 where the kernel has none or it is gone already."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _report(status_fd: int, child: int) -> None:
    with contextlib.suppress(OSError):
        os.write(status_fd, b"%d\n" % child)
    os.close(status_fd)


def _become(command: list[str], options: dict[str, str], libc: ctypes.CDLL, guard: int) -> None:
    """In the child: drop privileges, tie its life to the guard's, become the command. Never returns."""
    try:
        os.set_inheritable(int(options["status"]), False)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, *_STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        if "uid" in options:
            os.setgroups([])
            os.setgid(int(options["gid"]))
            os.setuid(int(options["uid"]))
        os.umask(0o077)
        # After setuid, which clears it.
        if libc.prctl(_PR_SET_PDEATHSIG, int(options["death_signal"]), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != guard:
            os._exit(1)
        os.execv(command[0], command)
    except BaseException as error:
        os.write(2, f"cannot run {command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _supervise(child: int, wake: int, parent_fd: int, stop_signal: int, stop_timeout_s: float) -> int:
    """Wait for the child's end, ending it when told to; returns its exit code."""
    poll = select.poll()
    watched = [fd for fd in (0, parent_fd, wake) if fd >= 0]
    for fd in watched:
        poll.register(fd, select.POLLIN)
    deadline: float | None = None
    killed = False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if deadline is not None and not killed and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            killed = True
        wait_ms = None if deadline is None or killed else max(0.0, (deadline - time.monotonic()) * 1000) + 1
        asked = False
        for fd, _event in poll.poll(wait_ms):
            if fd == wake:
                asked |= any(byte in _STOP_SIGNALS for byte in os.read(wake, 64))
            elif fd == parent_fd or not os.read(fd, 64):
                poll.unregister(fd)
                asked = True
        if asked and deadline is None:
            os.kill(child, stop_signal)
            deadline = time.monotonic() + stop_timeout_s


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
