"""Wires every layer together, once, and runs a server until it is told to end."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

import asyncpg
import structlog
import uvloop

from millstream.adapters import logs
from millstream.adapters.auth import ApiKey, ApiKeyAuthenticator, DeveloperAuthenticator
from millstream.adapters.metrics import Metrics
from millstream.adapters.pages import Pages
from millstream.application.fresh import Fresh
from millstream.application.ports import Disconnected
from millstream.config import ConfigError, Settings
from millstream.domain.batch import Batch
from millstream.store import migrations
from millstream.transport.admission import Admission
from millstream.transport.pipeline import Pipeline
from millstream.transport.ports import Authenticator
from millstream.transport.reading import Limits
from millstream.transport.server import Server, UseCases
from millstream.transport.streams import Streams
from millstream.wiring import wire

if TYPE_CHECKING:
    from millstream.adapters.tracing import Tracer

_log: Final = structlog.get_logger("millstream.server")
_GAUGE_S: Final = 5.0
_METRICS_S: Final = 1.0
"""How long metrics of several processes stand once they were merged."""


@dataclass(frozen=True, slots=True)
class App:
    """A wired service.

    Attributes:
        use_cases: What the transport serves.
        ready: Whether it can serve.
        close: Ends the engine and its connections; called after the server's end.
        broken: Set where the service can serve no more: it has to be started again.
        commits: Has something told of each commit.
    """

    use_cases: UseCases
    ready: Callable[[], Awaitable[bool]]
    close: Callable[[], Awaitable[None]]
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    commits: Callable[[Callable[[Batch], None]], None] = lambda told: None


Build = Callable[[Settings, Metrics], Awaitable[App]]
"""Makes the service behind the transport."""


class CannotStartError(RuntimeError):
    """What the server needs is not there. The message is one line."""


async def build(settings: Settings, metrics: Metrics) -> App:
    """The service on its database, brought up to date and running. Raises ConfigError and CannotStartError."""
    url = settings.database_url.get_secret_value()
    if not url:
        raise ConfigError("database_url is missing: postgresql://user:password@host/database")
    try:
        if settings.migrate_at_start:
            await _migrate(url)
        service = await wire(settings, metrics)
        await service.start()
    except migrations.MigrationError as error:
        raise CannotStartError(str(error)) from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise CannotStartError(f"cannot reach the database: {error}") from error
    except Disconnected as error:
        raise CannotStartError(f"cannot reach the database: {error.__cause__ or 'the connection was lost'}") from error

    async def gauge() -> None:
        await service.system.gauge()
        metrics.settle()

    async def written() -> bytes:
        await gauge()
        return await asyncio.to_thread(metrics.exposition)

    # Of several processes each would read the files of all, for each that asks.
    exposition = Fresh(written, _METRICS_S) if metrics.shared else written

    # Whichever process is asked answers for all that share their metrics, so each keeps its own gauges fresh.
    gauging = asyncio.create_task(_gauge_often(gauge)) if metrics.shared else None

    async def close() -> None:
        if gauging is not None:
            gauging.cancel()
        await service.close()
        # Other processes go on to show what this one counted.
        metrics.settle()

    def commits(told: Callable[[Batch], None]) -> None:
        service.engine.recorded.append(told)

    def leave() -> None:
        service.system.readiness.draining = True

    def drain() -> None:
        service.workers.drain()
        service.log_intake.drain()

    use_cases = UseCases(
        service.artifacts,
        service.payloads,
        service.watching,
        service.run_watching,
        service.correlations,
        service.types,
        service.agents,
        service.workflows,
        service.runs,
        service.run_operations,
        service.steps,
        service.workflow_runs,
        service.workflow_pauses,
        service.code_runs,
        service.tasks,
        service.promises,
        service.dead_letters,
        service.queues,
        service.workers,
        service.log_intake,
        service.task_logs,
        service.log_watching,
        service.discovery,
        service.tenants,
        service.workflow_kinds,
        service.system,
        Pages(),
        exposition,
        leave,
        drain,
    )
    return App(use_cases, service.system.readiness.ok, close, service.broken, commits)


async def _gauge_often(gauge: Callable[[], Awaitable[None]]) -> None:
    while True:
        await gauge()
        await asyncio.sleep(_GAUGE_S)


async def _migrate(url: str) -> None:
    """Bring the database up to date. One that a newer release has migrated is served as it is: each release works on
    the tables of the next, so that both may run at once and this one may be started again."""
    revision = await migrations.current(url)
    if revision is None or migrations.known(revision):
        await migrations.upgrade(url)
    else:
        _log.warning("a newer release has migrated the database", revision=revision, known=migrations.head())


def run(settings: Settings, build: Build = build) -> int:
    """Serve on an event loop of its own, and return the exit code."""
    return uvloop.run(serve(settings, build))


async def serve(settings: Settings, build: Build = build) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code. Raises ConfigError where no one could call, or there
    is no database to serve."""
    logs.configure(settings.log_format, settings.log_level)
    authenticator = authenticator_of(settings)
    metrics = Metrics()
    ended = _signals()
    try:
        app = await build(settings, metrics)
    except CannotStartError as error:
        _log.error("cannot start", reason=str(error))
        return 1
    _calm_collector()
    tracer: Tracer | None = None
    try:
        tracer = tracer_of(settings, app)
        server = server_of(settings, app, authenticator, metrics, tracer)
        try:
            port = await server.start(address_of(settings))
        except OSError as error:
            _log.error("cannot start", reason=str(error))
            return 1
        _log.info("ready", address=f"{settings.host}:{port}", auth_mode=settings.auth_mode or "api_keys")
        await _first(ended, app.broken)
        broken = app.broken.is_set()
        if broken:
            # Whoever looks after the process starts it again; here nothing would.
            _log.critical("a part of the server ended: it stops, to be started again")
        await server.stop()
    finally:
        await app.close()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)
    _log.info("ended")
    return 1 if broken else 0


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()


def tracer_of(settings: Settings, app: App) -> "Tracer | None":
    """What records traces, told of each commit; None where none are exported."""
    if not settings.otlp_endpoint:
        return None
    from millstream.adapters.tracing import Tracer  # a third of a second, which only those pay who export

    tracer = Tracer(settings.otlp_endpoint, settings.trace_ratio, version_of(), f"{socket.gethostname()}/{os.getpid()}")
    app.commits(tracer.committed)
    return tracer


def server_of(
    settings: Settings, app: App, authenticator: Authenticator, metrics: Metrics, tracer: "Tracer | None" = None
) -> Server:
    """The server in front of a wired service."""
    pipeline = Pipeline(
        authenticator=authenticator,
        metrics=metrics,
        limits=Limits(settings.max_payload_bytes, settings.max_request_bytes),
        proxy_token=settings.proxy_token.get_secret_value().encode(),
        streams=Streams(settings.max_streams, settings.max_streams_per_tenant),
        admission=Admission(settings.max_calls, settings.max_calls_per_tenant),
        tracer=tracer,
    )
    return Server(pipeline, app.use_cases, version_of(), app.ready, settings.drain_timeout_s, settings.drain_delay_s)


def authenticator_of(settings: Settings) -> Authenticator:
    """Who may call. Raises ConfigError where nobody is configured: authentication fails closed."""
    if settings.auth_mode == "developer":
        return DeveloperAuthenticator()
    if not settings.api_keys:
        raise ConfigError(
            "nobody could call: configure api_keys, or choose auth_mode developer, which listens on loopback only"
        )
    keys = [
        ApiKey(
            id=key.id,
            sha256=key.sha256.get_secret_value(),
            tenant=key.tenant,
            roles=tuple(key.roles),
            agent=key.agent,
            labels=tuple(key.labels),
            name=key.name,
        )
        for key in settings.api_keys
    ]
    try:
        return ApiKeyAuthenticator(keys)
    except ValueError as error:
        raise ConfigError(f"api_keys: {error}") from None


def address_of(settings: Settings) -> str:
    """The address that gRPC listens on."""
    host = settings.host
    if host.startswith("unix:"):
        return host
    return f"[{host}]:{settings.port}" if ":" in host and "[" not in host else f"{host}:{settings.port}"


def version_of() -> str:
    """Version of the installed package."""
    try:
        return version("millstream")
    except PackageNotFoundError:
        return "0"


def _calm_collector() -> None:
    """What was loaded stays, so the collector need not look at it; and it looks less often, since a batch makes
    thousands of objects that reference counting frees (700 allocations a look took a quarter of a batch)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    return ended
