"""All reads of artifacts and runs as one."""

from millstream.store.artifacts import ArtifactReads
from millstream.store.connections import Database
from millstream.store.runs import RunReads


class Reads(ArtifactReads, RunReads):
    """Reads of artifacts, runs, tasks, attempts and events."""

    def __init__(self, database: Database) -> None:
        ArtifactReads.__init__(self, database)
        RunReads.__init__(self, database)
