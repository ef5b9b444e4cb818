"""The crash suite's database, its usual cluster, and its counts at the end of the run."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.crash import summary
from tests.crash.cluster import Cluster
from tests.crash.processes import Postgres, scratch_folder
from tests.crash.summary import Row
from tests.crash.wire import Wire

_ROWS = pytest.StashKey[list[Row]]()
SUMMARY = "summary.json"


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> list[Row]:
    """Where scenarios note their counts."""
    return request.config.stash.setdefault(_ROWS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the counts, and keep them as JSON in pytest's cache."""
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    terminalreporter.section("crash suite")
    for line in summary.table(rows):
        terminalreporter.write_line(line)
    met = summary.total(rows).errors
    terminalreporter.write_line(
        "met before an answer: " + (", ".join(f"{n} {error}" for error, n in met.items()) or "-")
    )
    if getattr(config, "cache", None) is not None:
        summary.write(rows, Path(config.cache.mkdir("crash")) / SUMMARY)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Everything the suite writes; CRASH_KEEP leaves it there, with the histories and all logs."""
    found = scratch_folder()
    yield found
    if not os.environ.get("CRASH_KEEP"):
        shutil.rmtree(found, ignore_errors=True)


@pytest.fixture(scope="session")
async def postgres(folder: Path) -> AsyncIterator[Postgres]:
    """One durable PostgreSQL for the suite; each cluster has a database of its own in it."""
    server = Postgres(folder)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture(scope="session")
async def cluster(postgres: Postgres, folder: Path) -> AsyncIterator[Cluster]:
    """Two servers, Envoy over both, two workers through Envoy."""
    await _alive(postgres)
    found = Cluster(postgres, await postgres.create_database("crash"), folder)
    found.server("server-a")
    found.server("server-b")
    envoy = found.proxy()
    for name in ("worker-a", "worker-b"):
        found.worker(name, envoy.target)
    await found.heal()
    yield found
    await found.stop()


@pytest.fixture(scope="session")
async def wire(postgres: Postgres, folder: Path) -> AsyncIterator[Wire]:
    """A wire to the database that can be cut."""
    scratch = folder / "wire"
    scratch.mkdir()
    async with Wire(postgres, scratch, seed=8).open() as found:
        yield found


@pytest.fixture(scope="session")
async def armed(postgres: Postgres, folder: Path, wire: Wire) -> AsyncIterator[Cluster]:
    """Another cluster, whose servers can be told where to die, and reach their database by the wire."""
    await _alive(postgres)
    found = Cluster(postgres, await postgres.create_database("armed"), folder / "armed")
    found.folder.mkdir()
    program = Path(__file__).parent / "armed_server.py"
    for name in ("server-a", "server-b"):
        server = found.server(name, wire.url(found.url), program)
        server.env["CRASH_ARM"] = str(found.folder / f"{name}.arm")
    found.proxy()
    # Each has a worker of its own, or one would soon have none, and so nothing to push.
    for name, server in zip(("worker-a", "worker-b"), found.servers, strict=True):
        found.worker(name, server.target)
    await found.heal()
    yield found
    await found.stop()


async def _alive(postgres: Postgres) -> None:
    if not postgres.alive:
        await postgres.start()
