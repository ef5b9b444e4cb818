"""What runs beside the calls: loops, and the wake-ups that servers send each other."""

import base64
import logging

from millstream.application.calling import Calling
from millstream.application.engine.upkeep import Upkeep
from millstream.application.engine.waiting import Ended
from millstream.application.log_feed import LogFeed
from millstream.application.log_levels import LogLevels
from millstream.application.views.reports import Streamed
from millstream.config import Settings
from millstream.runtime.loops import Loops, Retention
from millstream.store.wakeups import Message, Wakeups
from millstream.wiring.core import Core

log = logging.getLogger(__name__)

UPLOAD_SILENT_S = 3600.0
"""An upload without a new piece for so long is given up; the transport ends one much sooner, this is for servers that
are gone."""


def make_loops(core: Core, calling: Calling) -> Loops:
    """The loops, told by the engine of what is due."""
    stores = core.stores
    loops = Loops(
        Upkeep(core.engine, core.catalogs, core.pauses, core.feed, core.run_feed, calling),
        stores.maintenance,
        stores.buffers,
        stores.payloads,
        stores.feed,
        stores.workers,
        stores.logs,
        stores.throughput,
        stores.reads,
        core.peers,
        _retention(core.settings),
    )
    core.engine.scheduled = loops.scheduled
    return loops


def make_wakeups(core: Core, levels: LogLevels, calling: Calling, logs: LogFeed) -> Wakeups:
    """What wakes the other servers up, and this one."""
    stores = core.stores
    wakeups = Wakeups(
        stores.url, stores.database, stores.lane.id, lambda message: _receive(core, levels, calling, logs, message)
    )
    wakeups.passed_over = lambda: core.metrics.streams.passed_over(1)
    core.peers.send, core.peers.offer = wakeups.send, wakeups.offer
    return wakeups


def _receive(core: Core, levels: LogLevels, calling: Calling, logs: LogFeed, message: Message) -> None:
    """Act on a wake-up from another server."""
    engine = core.engine
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
            core.feed.look({tenant})
        case ("stream", run_id, task_id, attempt, index, value):
            core.run_feed.stream(run_id, Streamed(task_id, int(attempt), int(index), base64.b64decode(value)))
        case ("logged", run_id):
            logs.look([run_id])
        case ("event", run_id):
            core.run_feed.look(run_id)
        case ("registry", tenant):
            core.catalogs.forget(tenant)
            calling.look_again(tenant)
        case ("pauses",):
            core.pauses.look_again()
        case ("log levels",):
            levels.look_again()
        case ("peers",):
            core.peers.look_again()
        case _:
            log.warning("an unknown wake-up: %s", message)


def _retention(settings: Settings) -> Retention:
    """How long things are kept."""
    return Retention(
        settings.run_retention_days,
        settings.artifact_retention_days,
        settings.payload_grace_s,
        UPLOAD_SILENT_S,
        settings.watch_resume_s,
        settings.worker_retention_s,
        settings.log_retention_days,
    )
