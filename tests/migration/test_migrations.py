"""Migrations: they lead to the tables the code works with, back again, and once however many ask."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from millstream import bootstrap
from millstream.store import migrations
from millstream.store.embedded import EmbeddedPostgres


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[EmbeddedPostgres]:
    """One server for the module; each test has a database of its own."""
    async with EmbeddedPostgres(ephemeral=True) as running:
        yield running


@pytest.fixture
async def url(server: EmbeddedPostgres, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    name = f"db_{abs(hash(request.node.name))}"
    connection = await asyncpg.connect(server.url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return server.url.replace("/millstream?", f"/{name}?")


async def test_the_migrations_lead_to_the_tables_that_the_code_names(url: str) -> None:
    assert await migrations.current(url) is None
    await migrations.upgrade(url)
    assert await migrations.current(url) == migrations.head()
    await migrations.check(url)


async def test_replicas_that_start_together_migrate_once(url: str) -> None:
    await asyncio.gather(*(migrations.upgrade(url) for _ in range(6)))
    assert await migrations.current(url) == migrations.head()


async def test_a_migration_can_be_taken_back(url: str) -> None:
    await migrations.upgrade(url)
    await migrations.downgrade(url, "base")
    assert await migrations.current(url) is None
    await migrations.upgrade(url)
    await migrations.check(url)


async def test_upgrading_twice_changes_nothing(url: str) -> None:
    await migrations.upgrade(url)
    await migrations.upgrade(url)
    assert await migrations.current(url) == migrations.head()


async def test_a_database_that_a_newer_release_migrated_is_served_as_it_is(url: str) -> None:
    """WM-7: one version backward compatible."""
    await migrations.upgrade(url)
    connection = await asyncpg.connect(url)
    await connection.execute(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'")
    await connection.close()
    await bootstrap._migrate(url)
    assert await migrations.current(url) == "9999"


async def test_a_revision_that_nobody_knows_is_one_line(url: str) -> None:
    with pytest.raises(migrations.MigrationError, match=r"^Can't locate revision identified by '9999'$"):
        await migrations.upgrade(url, "9999")
