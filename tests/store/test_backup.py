"""Backups of the embedded database: whole, taken under load, proved before they replace anything."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path

import asyncpg
import pytest

from millstream.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from millstream.store.embedded.backup import MANIFEST, BackupError, put_back, take


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> Path:
    """A directory that an unprivileged user can enter (pytest's own are private to whoever runs it)."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    return tmp_path


async def numbers(server: EmbeddedPostgres) -> list[int]:
    """The numbers of the table, in order."""
    connection = await asyncpg.connect(server.url)
    try:
        return [row["n"] for row in await connection.fetch("SELECT n FROM numbers ORDER BY n")]
    finally:
        await connection.close()


async def backed_up(place: Path) -> int:
    """Take a backup while one writes; return how many numbers were acknowledged when it began."""
    async with EmbeddedPostgres(place / "first") as server:
        connection = await asyncpg.connect(server.url)
        await connection.execute("CREATE TABLE numbers (n bigint PRIMARY KEY)")
        written, enough = 0, asyncio.Event()

        async def write() -> None:
            nonlocal written
            while True:
                await connection.execute("INSERT INTO numbers VALUES ($1)", written)
                written += 1
                if written == 50:
                    enough.set()

        writing = asyncio.create_task(write())
        await enough.wait()
        before = written
        await asyncio.to_thread(take, server, place / "backup", version="1", revision="0001")
        assert written > before  # it was under load
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        await connection.close()
    return before


async def test_what_was_acknowledged_before_a_backup_under_load_is_in_it_without_a_gap(place: Path) -> None:
    """And the directory it is restored to serves."""
    before = await backed_up(place)
    restored = EmbeddedPostgres(place / "second")
    assert put_back(place / "backup", restored) is None
    async with restored:
        found = await numbers(restored)
    assert found == list(range(len(found)))
    assert len(found) >= before
    manifest = json.loads((place / "backup" / MANIFEST).read_text())
    assert (manifest["version"], manifest["revision"]) == ("1", "0001")
    assert manifest["postgres_major"] == restored.binaries.major
    assert (place / "backup").stat().st_mode & 0o077 == 0
    assert not list(place.glob(".backup.partial*"))


async def test_data_that_is_there_is_refused_and_kept_aside_by_force(place: Path) -> None:
    await backed_up(place)
    first = EmbeddedPostgres(place / "first")
    with pytest.raises(BackupError, match=r"holds data: .*--force"):
        put_back(place / "backup", first)
    aside = put_back(place / "backup", first, force=True)
    assert aside is not None
    assert (aside / "data" / "PG_VERSION").exists()
    assert (aside / "password").exists()
    async with first:
        assert await numbers(first)
        with pytest.raises(BackupError, match=r"a server \(pid \d+\) runs in"):
            put_back(place / "backup", first, force=True)


async def test_a_damaged_backup_replaces_nothing(place: Path) -> None:
    await backed_up(place)
    first = EmbeddedPostgres(place / "first")
    control = place / "backup" / "data" / "global" / "pg_control"
    whole = control.read_bytes()
    control.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(BackupError, match="the content of data/global/pg_control is not what was backed up"):
        put_back(place / "backup", first, force=True)
    control.unlink()
    with pytest.raises(BackupError, match="not whole: data/global/pg_control"):
        put_back(place / "backup", first, force=True)
    control.write_bytes(whole)
    manifest = place / "backup" / MANIFEST
    text = manifest.read_text()
    manifest.write_text(text.replace(f'"postgres_major": {first.binaries.major}', '"postgres_major": 12'))
    with pytest.raises(BackupError, match="made by PostgreSQL 12"):
        put_back(place / "backup", first, force=True)
    manifest.unlink()
    with pytest.raises(BackupError, match="is no backup"):
        put_back(place / "backup", first, force=True)
    assert not list((place / "first").glob("before-*"))
    async with first:
        assert await numbers(first)


async def test_a_directory_of_another_major_is_refused_with_the_way_to_upgrade(place: Path) -> None:
    async with EmbeddedPostgres(place / "first") as server:
        pass
    (server.cluster / "PG_VERSION").write_text("14\n")
    with pytest.raises(EmbeddedPostgresError, match=r"was made by PostgreSQL 14.*docs/operations\.md"):
        server.initialise()


async def test_the_commands_back_up_a_stopped_installation_and_restore_it(place: Path) -> None:
    async def run(*arguments: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "millstream.cli", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        return process.returncode, output.decode()

    copy, old, new = str(place / "copy"), str(place / "old"), str(place / "new")
    code, output = await run("backup", copy, "--data-dir", old)
    assert (code, "has no embedded database" in output) == (1, True), output
    (place / "old").mkdir(mode=0o711)
    async with EmbeddedPostgres(place / "old" / "postgres") as server:
        connection = await asyncpg.connect(server.url)
        await connection.execute("CREATE TABLE numbers AS SELECT 7::bigint AS n")
        await connection.close()
    code, output = await run("backup", copy, "--data-dir", old)
    assert code == 0, output
    code, output = await run("backup", copy, "--data-dir", old)
    assert (code, "exists already" in output) == (1, True), output
    (place / "no-copy").mkdir()
    code, output = await run("restore", str(place / "no-copy"), "--data-dir", str(place / "deep" / "new"))
    assert code == 1, output
    assert not (place / "deep").exists()
    code, output = await run("restore", copy, "--data-dir", new)
    assert (code, output) == (0, f"restored to {new}\n")
    async with EmbeddedPostgres(place / "new" / "postgres") as server:
        assert await numbers(server) == [7]
