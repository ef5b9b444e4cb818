"""The database's connections, and what reads and writes it."""

from dataclasses import dataclass

from millstream.application.ids import new_id
from millstream.config import Settings
from millstream.store.buffers import Buffers
from millstream.store.connections import Database
from millstream.store.feed import FeedReads
from millstream.store.journal import JournalReads
from millstream.store.lane import PostgresLane
from millstream.store.log_partitions import LogPartitions
from millstream.store.maintenance import Maintenance
from millstream.store.payloads import Payloads
from millstream.store.reads import Reads
from millstream.store.registry import RegistryStore
from millstream.store.run_feed import RunFeedReads
from millstream.store.throughput import ThroughputRows
from millstream.store.workers import WorkerRows
from millstream.store.workflows import WorkflowReads


@dataclass(frozen=True, slots=True)
class Stores:
    """What more than one part is given of the store; `lane` and `blocking` write for the engine."""

    url: str
    lane: PostgresLane
    blocking: PostgresLane
    database: Database
    reads: Reads
    maintenance: Maintenance
    registry: RegistryStore
    workers: WorkerRows
    journal: JournalReads
    workflows: WorkflowReads
    feed: FeedReads
    run_feed: RunFeedReads
    payloads: Payloads
    buffers: Buffers
    logs: LogPartitions
    throughput: ThroughputRows

    @classmethod
    async def open(cls, settings: Settings) -> "Stores":
        """Connect. Raises Disconnected, OSError and asyncpg's errors where the database cannot be reached."""
        url = settings.database_url.get_secret_value()
        lane, blocking = PostgresLane(url, new_id()), PostgresLane(url, new_id())
        await lane.open()
        await blocking.open()
        database = await Database.open(url, settings.pool_size)
        return cls(
            url,
            lane,
            blocking,
            database,
            Reads(database),
            Maintenance(database),
            RegistryStore(database),
            WorkerRows(database),
            JournalReads(database),
            WorkflowReads(database),
            FeedReads(database),
            RunFeedReads(database),
            Payloads(database),
            Buffers(database),
            LogPartitions(database),
            ThroughputRows(database),
        )

    async def close(self) -> None:
        """Disconnect."""
        await self.lane.close()
        await self.blocking.close()
        await self.database.close()
