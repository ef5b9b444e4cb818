"""The engine with its store, use cases and loops, wired from the settings."""

import asyncio
import contextlib
import functools
import ipaddress
import logging
import os
import socket
from dataclasses import dataclass, field

from millstream.adapters import logs
from millstream.adapters.agents import AgentCaller
from millstream.adapters.expressions import CelPredicates
from millstream.adapters.metrics import Metrics
from millstream.adapters.sandbox import Sandbox
from millstream.adapters.schemas import JsonSchemas
from millstream.adapters.values import CelExpressions
from millstream.application.advancing import Advancing
from millstream.application.agent_runs import AgentRuns
from millstream.application.agents import Agents, Types, online_kinds
from millstream.application.artifacts import Artifacts
from millstream.application.call_ports import Credential
from millstream.application.calling import Calling
from millstream.application.calls import Calls
from millstream.application.catalog import Catalogs
from millstream.application.children import Children
from millstream.application.code_runs import CodeRuns
from millstream.application.code_workflows import CodeWorkflows
from millstream.application.correlations import Correlations
from millstream.application.dead_letters import DeadLetters
from millstream.application.defining import Defining
from millstream.application.discovery import Discovery
from millstream.application.engine.batches import Sizes
from millstream.application.engine.engine import Engine
from millstream.application.engine.pool import Pool
from millstream.application.engine.upkeep import Upkeep
from millstream.application.engine.waiting import Ended
from millstream.application.feed import Feed
from millstream.application.ids import new_id
from millstream.application.log_levels import LogLevels
from millstream.application.pauses import Pauses
from millstream.application.payloads import Payloads
from millstream.application.promises import Promises
from millstream.application.publishing import Publishing
from millstream.application.queues import Queues
from millstream.application.readiness import Readiness, Schema
from millstream.application.referring import Referring
from millstream.application.registering import Registering
from millstream.application.reporting import Reporting
from millstream.application.rerunning import Rerunning
from millstream.application.results import Results
from millstream.application.run_operations import RunOperations
from millstream.application.run_steps import RunSteps
from millstream.application.runs import Runs
from millstream.application.step_values import Evaluator
from millstream.application.system import System
from millstream.application.tasks import Tasks
from millstream.application.tenants import Tenants
from millstream.application.waiting_gates import WaitingGates
from millstream.application.watching import Watching
from millstream.application.workers import Workers
from millstream.application.workflow_kinds import WorkflowKinds
from millstream.application.workflow_pauses import WorkflowPauses
from millstream.application.workflow_runs import WorkflowRuns
from millstream.application.workflows import Workflows
from millstream.config import Settings
from millstream.domain.addresses import LOOPBACK, Network
from millstream.domain.artifacts import Artifact
from millstream.domain.batch import Limits
from millstream.runtime.loops import Loops, Retention
from millstream.runtime.peers import Peers
from millstream.store import migrations
from millstream.store.buffers import Buffers
from millstream.store.connections import Database
from millstream.store.feed import FeedReads
from millstream.store.history import HistoryReads
from millstream.store.journal import JournalReads
from millstream.store.lane import PostgresLane
from millstream.store.lines import Lines
from millstream.store.maintenance import Maintenance
from millstream.store.payloads import Payloads as PayloadStore
from millstream.store.queues import QueueReads
from millstream.store.reads import Reads
from millstream.store.registry import RegistryStore
from millstream.store.schema import SchemaReads
from millstream.store.tenants import TenantStore
from millstream.store.wakeups import Message, Wakeups
from millstream.store.workers import WorkerRows
from millstream.store.workflows import WorkflowReads

log = logging.getLogger(__name__)

UPLOAD_SILENT_S = 3600.0
"""An upload without a new piece for so long is given up; the transport ends one much sooner, this is for servers that
are gone."""
LISTEN_S = 2.0
"""How long the start waits until wake-ups are heard."""


@dataclass(slots=True)
class Service:
    """A wired service; `start` runs its engine and loops, `close` ends them."""

    artifacts: Artifacts
    payloads: Payloads
    watching: Watching
    correlations: Correlations
    types: Types
    agents: Agents
    workflows: Workflows
    runs: Runs
    run_operations: RunOperations
    code_runs: CodeRuns
    tasks: Tasks
    promises: Promises
    workflow_runs: WorkflowRuns
    steps: RunSteps
    workflow_pauses: WorkflowPauses
    dead_letters: DeadLetters
    queues: Queues
    workers: Workers
    discovery: Discovery
    tenants: Tenants
    workflow_kinds: WorkflowKinds
    system: System
    engine: Engine
    catalogs: Catalogs
    advancing: Advancing
    loops: Loops
    peers: Peers
    pauses: Pauses
    feed: Feed
    wakeups: Wakeups
    maintenance: Maintenance
    reads: Reads
    calling: Calling
    _sandbox: Sandbox
    _database: Database
    _lanes: tuple[PostgresLane, PostgresLane]
    _background: list[asyncio.Task[None]]
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    """A part ended that has to run as long as the server does."""

    async def start(self) -> None:
        """Look who else is there, then run."""
        self.engine.clock.set(await self.maintenance.now_us())
        await self.peers.refresh()
        await self.pauses.refresh()
        await self.calling.refresh()
        await self.tenants.start()
        for name, step in (
            ("engine", self.engine.run()),
            ("loops", self.loops.run()),
            ("wake-ups sent", self.wakeups.run_sender()),
            ("wake-ups heard", self.wakeups.run_receiver()),
            ("announcer", self.peers.run_announcer()),
            ("presence", self.peers.run_presence()),
            ("pauses", self.pauses.run()),
            ("agents called", self.calling.run()),
            ("log levels", self.system.levels.run()),
            ("feed", self.feed.run()),
            ("workflows", self.advancing.run()),
        ):
            task = asyncio.create_task(step, name=name)
            task.add_done_callback(self._ended)
            self._background.append(task)
        # Who is told that this server is there may wake it at once. Without, the safety poll finds what it missed.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LISTEN_S):
                await self.wakeups.listening.wait()

    async def close(self) -> None:
        """End everything, answer who still waits, disconnect."""
        await self.calling.close()
        for task in reversed(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.engine.stop()
        for lane in self._lanes:
            await lane.close()
        await self._sandbox.close()
        await self._database.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part of the server ended, which only its cancellation may do."""
        if task.cancelled():
            return
        error = task.exception()
        log.critical("a part of the server ended: %s", task.get_name(), exc_info=error)
        # The name of the error only: its text may tell what is nobody's business.
        self.system.readiness.part_ended(task.get_name(), type(error).__name__ if error else "without an error")
        self.broken.set()


def _receive(
    engine: Engine,
    catalogs: Catalogs,
    peers: Peers,
    pauses: Pauses,
    levels: LogLevels,
    feed: Feed,
    calling: Calling,
    message: Message,
) -> None:
    """Act on a wake-up from another server."""
    match message:
        case ("ready", tenant, queue, kind):
            engine.dispatcher.mark([(tenant, queue, kind)])
        case ("ended", run_id):
            engine.cache.drop(run_id)
            engine.waiters.ended(run_id, Ended())
        case ("cancel", task_id, attempt):
            engine.dispatcher.cancel(task_id, int(attempt))
        case ("lost", task_id, attempt):
            engine.dispatcher.lost(task_id, int(attempt))
        case ("stored", tenant):
            feed.look({tenant})
        case ("registry", tenant):
            catalogs.forget(tenant)
            calling.look_again(tenant)
        case ("pauses",):
            pauses.look_again()
        case ("log levels",):
            levels.look_again()
        case ("peers",):
            peers.look_again()
        case _:
            log.warning("an unknown wake-up: %s", message)


async def wire(settings: Settings, metrics: Metrics) -> Service:
    """Connect and wire everything; nothing runs yet. Raises Disconnected where the database cannot be reached."""
    url = settings.database_url.get_secret_value()
    lane, blocking = PostgresLane(url, new_id()), PostgresLane(url, new_id())
    await lane.open()
    await blocking.open()
    database = await Database.open(url, settings.pool_size)
    reads, maintenance, registry = Reads(database), Maintenance(database), RegistryStore(database)
    worker_rows = WorkerRows(database)
    server = f"{socket.gethostname()}/{os.getpid()}"
    dispatcher_peers = Peers(lane.id, blocking.id, server, maintenance, worker_rows)
    lines = Lines(database)
    journal = JournalReads(database)
    engine = _engine(settings, lane, blocking, maintenance, lines, reads, journal, dispatcher_peers, metrics)
    dispatcher_peers.served = lambda: engine.dispatcher.served
    engine.dispatcher.elsewhere = dispatcher_peers.serve
    dispatcher_peers.workers = lambda: engine.dispatcher.workers
    dispatcher_peers.listed = engine.dispatcher.listed
    pauses = Pauses(engine.dispatcher, registry, dispatcher_peers)
    sandbox = Sandbox()
    catalogs = Catalogs(registry, CelPredicates(), JsonSchemas(), sandbox)
    key_ttl_us = settings.idempotency_ttl_s * 1_000_000
    networks = _networks(settings)
    registering = Registering(catalogs, key_ttl_us, networks)
    code_workflows = CodeWorkflows(journal, catalogs)
    workflow_reads, served = WorkflowReads(database), functools.partial(online_kinds, engine, catalogs)
    defining = Defining(catalogs, workflow_reads, CelExpressions(), dispatcher_peers, served, key_ttl_us)
    levels = LogLevels(registering, registry, dispatcher_peers, settings.log_level, logs.apply)
    feed_reads = FeedReads(database)
    feed = _feed(engine, feed_reads, reads, dispatcher_peers)
    wakeups = Wakeups(
        url,
        database,
        lane.id,
        lambda message: _receive(engine, catalogs, dispatcher_peers, pauses, levels, feed, calling, message),
    )
    dispatcher_peers.send = wakeups.send
    payload_store = PayloadStore(database)
    payloads = Payloads(payload_store, engine.clock.now_us, settings.max_upload_bytes)
    referring = Referring(catalogs, payloads, settings.large_payload_bytes, settings.max_payload_bytes)
    workflows = Workflows(catalogs, defining, workflow_reads, engine.clock.now_us)
    advancing = Advancing(engine, workflows, reads, Evaluator(CelExpressions(), sandbox))
    engine.attend = advancing.look
    results = Results(engine, reads)
    workflow_runs = WorkflowRuns(engine, workflows, code_workflows, advancing, results, key_ttl_us)
    code_runs = CodeRuns(engine, results, journal, code_workflows, key_ttl_us)
    advancing.others.append(Children(workflows, workflow_runs, catalogs, referring, reads, code_runs))
    reporting = Reporting(engine, catalogs, referring, maintenance, reads, advancing)
    caller = AgentCaller(networks, settings.agent_answer_bytes, _credentials(settings))
    calls = Calls(caller, reporting, referring, engine.clock, settings.max_payload_bytes)
    pool = Pool(settings.agent_calls, settings.agent_calls_per_tenant)
    calling = Calling(engine, registry, calls, dispatcher_peers, f"server {server}", pool, settings.drain_timeout_s)
    buffers = Buffers(database)
    upkeep = Upkeep(engine, catalogs, pauses, feed, calling)
    loops = Loops(
        upkeep,
        maintenance,
        buffers,
        payload_store,
        feed_reads,
        worker_rows,
        reads,
        dispatcher_peers,
        _retention(settings),
    )
    engine.scheduled = loops.scheduled
    runs, tasks = Runs(engine, reads, workflow_reads, key_ttl_us), Tasks(engine, reads, key_ttl_us)
    publishing = Publishing(engine, catalogs, referring, reads, key_ttl_us)
    agent_runs = AgentRuns(engine, catalogs, referring, reads, key_ttl_us)
    discovery = Discovery(engine, worker_rows)
    readiness = Readiness(SchemaReads(database), Schema(*migrations.brought()), engine.queue)
    return Service(
        Artifacts(engine, catalogs, referring, reads, key_ttl_us),
        payloads,
        Watching(engine.clock, feed, feed_reads, reads, settings.watch_resume_s),
        Correlations(engine, reads),
        Types(catalogs, registering),
        Agents(
            engine,
            catalogs,
            registering,
            pauses,
            WaitingGates(buffers, reads),
            agent_runs,
            HistoryReads(database),
            calling,
        ),
        workflows,
        runs,
        RunOperations(
            engine,
            reads,
            runs,
            Rerunning(engine, reads, publishing, agent_runs, tasks, workflow_runs, key_ttl_us),
            workflows,
            key_ttl_us,
        ),
        code_runs,
        tasks,
        Promises(engine, reads, key_ttl_us),
        workflow_runs,
        RunSteps(advancing, reads),
        WorkflowPauses(registering, pauses, registry, workflow_reads, code_workflows, reads, advancing.look),
        DeadLetters(engine, reads, key_ttl_us),
        Queues(engine, catalogs, registering, pauses, QueueReads(database)),
        Workers(
            engine,
            registering,
            reporting,
            maintenance,
            reads,
            dispatcher_peers,
            code_workflows,
            journal,
            int(settings.reconnect_grace_s * 1e6),
        ),
        discovery,
        Tenants(registry, TenantStore(database), key_ttl_us, (key.tenant for key in settings.api_keys)),
        WorkflowKinds(workflows, discovery),
        System(engine, maintenance, readiness, levels, metrics.engine.set),
        engine,
        catalogs,
        advancing,
        loops,
        dispatcher_peers,
        pauses,
        feed,
        wakeups,
        maintenance,
        reads,
        calling,
        sandbox,
        database,
        (lane, blocking),
        [],
    )


def _engine(
    settings: Settings,
    lane: PostgresLane,
    blocking: PostgresLane,
    maintenance: Maintenance,
    lines: Lines,
    reads: Reads,
    journal: JournalReads,
    peers: Peers,
    metrics: Metrics,
) -> Engine:
    """The engine with its bounds."""
    limits = Limits(
        settings.max_depth,
        settings.max_tasks_per_run,
        int(settings.lease_s * 1e6),
        int(settings.cancel_grace_s * 1e6),
        settings.max_waiting_keys,
        settings.max_commands_per_run,
    )
    sizes = Sizes(settings.batch_max_commands, settings.batch_max_bytes, settings.owner_path)
    return Engine(
        lane,
        blocking,
        maintenance,
        lines,
        reads,
        journal,
        peers,
        metrics.engine,
        limits,
        sizes,
        settings.queue_max_commands,
        settings.queue_max_bytes,
    )


def _networks(settings: Settings) -> tuple[Network, ...]:
    """Networks that are not public where agents may be called."""
    if not settings.agent_networks and settings.auth_mode == "developer":
        # Which everyone who may call already is on.
        return LOOPBACK
    return tuple(ipaddress.ip_network(each) for each in settings.agent_networks)


def _credentials(settings: Settings) -> list[Credential]:
    """What agents are sent to know who calls."""
    return [
        Credential(each.tenant, each.origin, each.header, each.value.get_secret_value())
        for each in settings.agent_credentials
    ]


def _retention(settings: Settings) -> Retention:
    """How long things are kept."""
    return Retention(
        settings.run_retention_days,
        settings.artifact_retention_days,
        settings.payload_grace_s,
        UPLOAD_SILENT_S,
        settings.watch_resume_s,
        settings.worker_retention_s,
    )


def _feed(engine: Engine, store: FeedReads, reads: Reads, peers: Peers) -> Feed:
    """The feed, told of commits here, and known to the other servers where it is read."""
    feed = Feed(store, reads)

    def stored(artifacts: list[Artifact]) -> None:
        if feed.watched:
            feed.look({artifact.tenant for artifact in artifacts})
        peers.stored(artifacts)

    engine.stored = stored
    feed.on_change = peers.interest_changed
    peers.watched = lambda: feed.watched
    return feed


@contextlib.asynccontextmanager
async def running_service(settings: Settings, metrics: Metrics):  # type: ignore[no-untyped-def]
    """A service that runs for the length of the block."""
    service = await wire(settings, metrics)
    try:
        await service.start()
        yield service
    finally:
        await service.close()
