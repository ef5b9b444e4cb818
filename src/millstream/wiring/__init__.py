"""The engine with its store, use cases and loops, wired from the settings."""

from millstream.adapters import logs
from millstream.adapters.metrics import Metrics
from millstream.application.agent_runs import AgentRuns
from millstream.application.agents import Agents, Types
from millstream.application.artifacts import Artifacts
from millstream.application.calling import Calling
from millstream.application.code_workflows import CodeWorkflows
from millstream.application.correlations import Correlations
from millstream.application.dead_letters import DeadLetters
from millstream.application.discovery import Discovery
from millstream.application.log_levels import LogLevels
from millstream.application.promises import Promises
from millstream.application.publishing import Publishing
from millstream.application.queues import Queues
from millstream.application.readiness import Readiness, Schema
from millstream.application.registering import Registering
from millstream.application.reporting import Reporting
from millstream.application.rerunning import Rerunning
from millstream.application.run_operations import RunOperations
from millstream.application.run_steps import RunSteps
from millstream.application.run_watches import RunWatching
from millstream.application.runs import Runs
from millstream.application.sight import Sight
from millstream.application.system import System
from millstream.application.tasks import Tasks
from millstream.application.tenants import Tenants
from millstream.application.views.reports import Streamed
from millstream.application.waiting_gates import WaitingGates
from millstream.application.watching import Watching
from millstream.application.workers import Workers
from millstream.application.workflow_kinds import WorkflowKinds
from millstream.application.workflow_pauses import WorkflowPauses
from millstream.config import Settings
from millstream.store import migrations
from millstream.store.history import HistoryReads
from millstream.store.queues import QueueReads
from millstream.store.schema import SchemaReads
from millstream.store.tenants import TenantStore
from millstream.wiring.background import make_loops, make_wakeups
from millstream.wiring.calling import make_calling, make_reporting
from millstream.wiring.core import Core, make_core
from millstream.wiring.service import Service
from millstream.wiring.stores import Stores
from millstream.wiring.task_logs import LogParts, make_task_logs
from millstream.wiring.workflows import WorkflowParts, make_workflows

__all__ = ["Service", "wire"]


async def wire(settings: Settings, metrics: Metrics) -> Service:
    """Connect and wire everything; nothing runs yet. Raises Disconnected where the database cannot be reached."""
    stores = await Stores.open(settings)
    stores.database.asked, stores.database.failed = metrics.database.asked, metrics.database.failed
    core = make_core(settings, stores, metrics)
    registering = Registering(core.catalogs, core.key_ttl_us, core.networks)
    levels = LogLevels(registering, stores.registry, core.peers, settings.log_level, logs.apply)
    readiness = Readiness(SchemaReads(stores.database), Schema(*migrations.brought()), core.engine.queue)
    task_logs = make_task_logs(core)
    system = System(core.engine, stores.maintenance, task_logs.intake, readiness, levels, metrics.engine.set)
    flow = make_workflows(core)
    reporting = make_reporting(core, flow.advancing)
    calling = make_calling(core, reporting)
    return _service(core, registering, flow, reporting, calling, task_logs, system)


def _service(
    core: Core,
    registering: Registering,
    flow: WorkflowParts,
    reporting: Reporting,
    calling: Calling,
    task_logs: LogParts,
    system: System,
) -> Service:
    """The use cases, each with what it needs of all that."""
    settings, stores, engine, catalogs = core.settings, core.stores, core.engine, core.catalogs
    reads, ttl_us = stores.reads, core.key_ttl_us
    runs, tasks = Runs(engine, reads, stores.workflows, ttl_us), Tasks(engine, reads, ttl_us)
    agent_runs = AgentRuns(engine, catalogs, core.referring, reads, ttl_us)
    discovery, meters = Discovery(engine, stores.workers), core.metrics.streams
    return Service(
        artifacts=Artifacts(engine, catalogs, core.referring, reads, ttl_us),
        payloads=core.payloads,
        watching=Watching(engine.clock, core.feed, stores.feed, reads, settings.watch_resume_s, meters),
        run_watching=RunWatching(engine.clock, core.run_feed, reads, Sight(reads), settings.run_retention_days, meters),
        correlations=Correlations(engine, reads),
        types=Types(catalogs, registering),
        agents=_agents(core, registering, agent_runs, calling),
        workflows=flow.workflows,
        runs=runs,
        run_operations=_run_operations(core, flow, runs, tasks, agent_runs),
        code_runs=flow.code_runs,
        tasks=tasks,
        promises=Promises(engine, reads, ttl_us),
        workflow_runs=flow.workflow_runs,
        steps=RunSteps(flow.advancing, reads),
        workflow_pauses=_workflow_pauses(core, registering, flow),
        dead_letters=DeadLetters(engine, reads, ttl_us),
        queues=Queues(engine, catalogs, registering, core.pauses, QueueReads(stores.database), core.throughput),
        workers=_workers(core, registering, reporting, flow.code_workflows),
        log_intake=task_logs.intake,
        task_logs=task_logs.reading,
        log_watching=task_logs.watching,
        log_feed=task_logs.feed,
        discovery=discovery,
        tenants=Tenants(
            stores.registry, TenantStore(stores.database), ttl_us, (key.tenant for key in settings.api_keys)
        ),
        workflow_kinds=WorkflowKinds(flow.workflows, discovery),
        system=system,
        core=core,
        advancing=flow.advancing,
        calling=calling,
        loops=make_loops(core, calling),
        wakeups=make_wakeups(core, system.levels, calling, task_logs.feed),
    )


def _agents(core: Core, registering: Registering, runs: AgentRuns, calling: Calling) -> Agents:
    reads, history = core.stores.reads, HistoryReads(core.stores.database)
    gates = WaitingGates(core.stores.buffers, reads)
    return Agents(core.engine, core.catalogs, registering, core.pauses, gates, runs, history, calling)


def _run_operations(core: Core, flow: WorkflowParts, runs: Runs, tasks: Tasks, agent_runs: AgentRuns) -> RunOperations:
    engine, reads, ttl_us = core.engine, core.stores.reads, core.key_ttl_us
    publishing = Publishing(engine, core.catalogs, core.referring, reads, ttl_us)
    rerunning = Rerunning(engine, reads, publishing, agent_runs, tasks, flow.workflow_runs, flow.code_runs, ttl_us)
    return RunOperations(engine, reads, runs, rerunning, flow.workflows, ttl_us)


def _workflow_pauses(core: Core, registering: Registering, flow: WorkflowParts) -> WorkflowPauses:
    stores, code, attend = core.stores, flow.code_workflows, flow.advancing.look
    return WorkflowPauses(registering, core.pauses, stores.registry, stores.workflows, code, stores.reads, attend)


def _workers(core: Core, registering: Registering, reporting: Reporting, code: CodeWorkflows) -> Workers:
    stores = core.stores

    def streaming(tenant: str, run_id: str, streamed: Streamed) -> None:
        core.run_feed.stream(run_id, streamed)
        core.peers.streamed(tenant, run_id, streamed)

    workers = Workers(
        core.engine,
        registering,
        reporting,
        stores.maintenance,
        stores.reads,
        core.peers,
        code,
        stores.journal,
        int(core.settings.reconnect_grace_s * 1e6),
    )
    workers.streaming = streaming
    return workers
