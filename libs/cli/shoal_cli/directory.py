"""The data directory of a system on this machine."""

from __future__ import annotations

from pathlib import Path

from shoal_core.errors import FailedPrecondition, InvalidArgument
from shoal_runtime.servers.process import DirectoryLock

# Where each keeps its objects. Postgres lies in the same place, so one would find the other's collections without their objects.
EMBEDDED_OBJECTS = "objects"
CLUSTER_OBJECTS = "s3"


def lock_directory(path: Path, objects: str) -> DirectoryLock:
    """Make the directory if it is missing, and lock it for this process.

    Args:
        objects: the folder of its objects, `EMBEDDED_OBJECTS` or `CLUSTER_OBJECTS`.

    Raises:
        FailedPrecondition: another process has it, or it holds the data of the other kind of system.
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
    return lock
