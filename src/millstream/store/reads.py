"""All reads of artifacts, runs and promises as one."""

from millstream.store.artifacts import ArtifactReads
from millstream.store.connections import Database
from millstream.store.dead_letters import DeadLetterReads
from millstream.store.promises import PromiseReads
from millstream.store.run_lists import RunLists
from millstream.store.runs import RunReads
from millstream.store.stuck import StuckReads


class Reads(ArtifactReads, RunReads, RunLists, StuckReads, PromiseReads, DeadLetterReads):
    """Reads of artifacts, runs, tasks, attempts, events, promises and dead letters."""

    def __init__(self, database: Database) -> None:
        ArtifactReads.__init__(self, database)
        RunReads.__init__(self, database)
        RunLists.__init__(self, database)
        StuckReads.__init__(self, database)
        PromiseReads.__init__(self, database)
        DeadLetterReads.__init__(self, database)
