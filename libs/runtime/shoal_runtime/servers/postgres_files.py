"""Files and commands as the server's user needs them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from shoal_runtime.servers.process import Account

_BECOME = Path(__file__).with_name("become.py")


def as_account(command: Sequence[str], account: Account | None) -> list[str]:
    """The command line that runs ``command`` as ``account``; None keeps the user."""
    if account is None:
        return list(command)
    return [sys.executable, "-I", "-S", str(_BECOME), str(account.uid), str(account.gid), *command]


def chown_tree(root: Path, account: Account) -> None:
    """Give ``root`` and all in it to ``account``."""
    for directory, _, files in os.walk(root):
        for path in (directory, *(os.path.join(directory, name) for name in files)):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def memory_file(text: str, account: Account | None) -> Iterator[int]:
    """A file without a name holding ``text``, readable by ``account``: secrets never lie where others could look."""
    fd = os.memfd_create("secret")
    try:
        os.write(fd, text.encode())
        os.lseek(fd, 0, os.SEEK_SET)
        if account is not None:
            os.fchown(fd, account.uid, account.gid)
        os.fchmod(fd, 0o600)
        yield fd
    finally:
        os.close(fd)
