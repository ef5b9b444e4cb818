"""For tests of workflows: an environment without a server whose time skips, and replays of stored histories.

It runs the service's own rules over memory, and loads no database, transport or proxy.
"""

from millstream.sdk.histories import History
from millstream.sdk.journal import NonDeterminism
from millstream.testing.environment import Environment
from millstream.testing.replays import HistoriesDiffer, replay, replay_all, stored_runs
from millstream.testing.runs import Blocked, Publication, RunFailed, TestRun, TestStep

__all__ = [
    "Blocked",
    "Environment",
    "HistoriesDiffer",
    "History",
    "NonDeterminism",
    "Publication",
    "RunFailed",
    "TestRun",
    "TestStep",
    "replay",
    "replay_all",
    "stored_runs",
]
