"""The data directory of a system on this machine."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path

from shoal_core.errors import Corrupt, FailedPrecondition, InvalidArgument, NewerFormat
from shoal_runtime.servers.process import DirectoryLock

# Where each keeps its objects. Postgres lies in the same place, so one would find the other's collections without their objects.
EMBEDDED_OBJECTS = "objects"
CLUSTER_OBJECTS = "s3"

# Of the layout, what lies where. Contents have formats of their own, and the schema of Postgres its migrations.
FORMAT = 1
_FORMAT_FILE = "FORMAT"


def lock_directory(path: Path, objects: str) -> DirectoryLock:
    """Make the directory if it is missing, and lock it for this process.

    Args:
        objects: the folder of its objects, `EMBEDDED_OBJECTS` or `CLUSTER_OBJECTS`.

    Raises:
        FailedPrecondition: another process has it, or it holds the data of the other kind of system.
        NewerFormat: a newer release made it.
        Corrupt: what says its format cannot be read.
        InvalidArgument: it cannot be made or written.
    """
    lock = DirectoryLock(path)
    try:
        lock.acquire()
    except OSError as error:
        problem = "not a directory" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise InvalidArgument(
            f"{path} cannot hold the data: {problem}; choose another directory", field="path"
        ) from error
    other, system = (
        (CLUSTER_OBJECTS, "a local cluster") if objects == EMBEDDED_OBJECTS else (EMBEDDED_OBJECTS, "a single process")
    )
    if (path / other).exists():
        lock.release()
        raise FailedPrecondition(
            f"{path} holds the data of {system}, which only that can serve; choose another directory", field="path"
        )
    try:
        _check_format(path)
    except BaseException:
        lock.release()
        raise
    return lock


def _check_format(path: Path) -> None:
    """Write the format into a directory that has none yet, which is a new one or one of before there was such a file; else check it."""
    file = path / _FORMAT_FILE
    if not file.exists():
        _write_format(file)
        return
    try:
        found = json.loads(file.read_text("utf-8"))
        number, release = int(found["format"]), str(found["release"])
    except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
        raise Corrupt(
            f"{file} does not say which format the directory has; restore it from a backup", field="path"
        ) from error
    if number > FORMAT:
        raise NewerFormat(
            f"{path} was made by Shoal {release} with format {number}, and this is {_release()}, which reads up to {FORMAT}; "
            f"use Shoal {release} or later, or choose another directory",
            field="path",
        )


def _write_format(file: Path) -> None:
    fresh = file.with_name(f"~{file.name}")
    with fresh.open("w", encoding="utf-8") as out:
        out.write(json.dumps({"format": FORMAT, "release": _release()}) + "\n")
        out.flush()
        os.fsync(out.fileno())
    os.replace(fresh, file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _release() -> str:
    return metadata.version("shoal-cli")
