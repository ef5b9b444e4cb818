"""The engine, and what stands around it before any use case does."""

import ipaddress
import os
import socket
from dataclasses import dataclass

from millstream.adapters.expressions import CelPredicates
from millstream.adapters.metrics import Metrics
from millstream.adapters.sandbox import Sandbox
from millstream.adapters.schemas import JsonSchemas
from millstream.application.catalog import Catalogs
from millstream.application.engine.batches import Sizes
from millstream.application.engine.engine import Engine
from millstream.application.feed import Feed
from millstream.application.pauses import Pauses
from millstream.application.payloads import Payloads
from millstream.application.progress import ProgressNotes
from millstream.application.referring import Referring
from millstream.application.run_feed import RunFeed
from millstream.application.throughput import Throughput
from millstream.config import Settings
from millstream.domain.addresses import LOOPBACK, Network
from millstream.domain.artifacts import Artifact
from millstream.domain.batch import Batch, Limits
from millstream.runtime.peers import Peers
from millstream.store.lines import Lines
from millstream.wiring.stores import Stores


@dataclass(frozen=True, slots=True)
class Core:
    """What nearly every use case is given.

    Attributes:
        server: How this server is called.
        metrics: Where measures go.
        networks: Those that are not public, where agents may be called all the same.
        key_ttl_us: How long idempotency keys hold.
    """

    settings: Settings
    stores: Stores
    metrics: Metrics
    server: str
    engine: Engine
    peers: Peers
    pauses: Pauses
    feed: Feed
    run_feed: RunFeed
    notes: ProgressNotes
    throughput: Throughput
    sandbox: Sandbox
    catalogs: Catalogs
    payloads: Payloads
    referring: Referring
    networks: tuple[Network, ...]
    key_ttl_us: int


def make_core(settings: Settings, stores: Stores, metrics: Metrics) -> Core:
    """The engine, known to the other servers."""
    server = f"{socket.gethostname()}/{os.getpid()}"
    peers = Peers(stores.lane.id, stores.blocking.id, server, stores.maintenance, stores.workers)
    engine = _engine(settings, stores, peers, metrics)
    throughput = Throughput(stores.lane.id, engine.clock, stores.throughput)
    engine.recorded += [metrics.engine.committed, throughput.committed]
    peers.served = lambda: engine.dispatcher.served
    peers.workers = lambda: engine.dispatcher.workers
    peers.listed = engine.dispatcher.listed
    engine.dispatcher.elsewhere = peers.serve
    sandbox = Sandbox()
    catalogs = Catalogs(stores.registry, CelPredicates(), JsonSchemas(), sandbox)
    payloads = Payloads(stores.payloads, engine.clock.now_us, settings.max_upload_bytes)
    return Core(
        settings,
        stores,
        metrics,
        server,
        engine,
        peers,
        Pauses(engine.dispatcher, stores.registry, peers),
        _feed(engine, stores, peers),
        _run_feed(engine, stores, peers, metrics),
        ProgressNotes(engine),
        throughput,
        sandbox,
        catalogs,
        payloads,
        Referring(catalogs, payloads, settings.large_payload_bytes, settings.max_payload_bytes),
        _networks(settings),
        settings.idempotency_ttl_s * 1_000_000,
    )


def _engine(settings: Settings, stores: Stores, peers: Peers, metrics: Metrics) -> Engine:
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
        stores.lane,
        stores.blocking,
        stores.maintenance,
        Lines(stores.database),
        stores.reads,
        stores.journal,
        peers,
        metrics.engine,
        limits,
        sizes,
        settings.queue_max_commands,
        settings.queue_max_bytes,
    )


def _feed(engine: Engine, stores: Stores, peers: Peers) -> Feed:
    """The feed, told of commits here, and known to the other servers where it is read."""
    feed = Feed(stores.feed, stores.reads)

    def stored(artifacts: list[Artifact]) -> None:
        if feed.watched:
            feed.look({artifact.tenant for artifact in artifacts})
        peers.stored(artifacts)

    engine.stored = stored
    feed.on_change = peers.interest_changed
    peers.watched = lambda: feed.watched
    return feed


def _run_feed(engine: Engine, stores: Stores, peers: Peers, metrics: Metrics) -> RunFeed:
    """The feed of runs, told of commits here, and known to the other servers where runs are watched."""
    feed = RunFeed(stores.run_feed)
    feed.passed_over = metrics.streams.passed_over

    def recorded(batch: Batch) -> None:
        feed.committed(batch)
        peers.recorded(batch.dirty_runs.values())

    engine.recorded.append(recorded)
    feed.on_change = peers.interest_changed
    peers.runs_watched = lambda: feed.watched
    return feed


def _networks(settings: Settings) -> tuple[Network, ...]:
    """Networks that are not public where agents may be called."""
    if not settings.agent_networks and settings.auth_mode == "developer":
        # Which everyone who may call already is on.
        return LOOPBACK
    return tuple(ipaddress.ip_network(each) for each in settings.agent_networks)
