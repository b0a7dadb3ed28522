"""Runs a command as another user: ``python -I -S become.py uid gid command ...``.

`subprocess` can do that by itself, but then forks this process with all it holds, and gRPC, where it is in use, does not
survive that: starting a fresh interpreter does not run the handlers that libraries install for forks.

Only the standard library, nothing of Shoal.
"""

from __future__ import annotations

import os
import sys


def main(argv: list[str]) -> None:
    """Drop to the numeric uid and gid, without further groups, then become the command."""
    uid, gid, *command = argv
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
