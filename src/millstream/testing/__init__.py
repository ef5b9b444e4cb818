"""For tests of workflows as code: an environment without a server whose time skips, and replays of stored histories.

It costs what importing `millstream.sdk` costs, and loads no server, database or proxy.
"""

from millstream.sdk.histories import History
from millstream.sdk.journal import NonDeterminism
from millstream.testing.environment import Environment
from millstream.testing.replays import replay
from millstream.testing.runs import Blocked, Publication, RunFailed, TestRun

__all__ = [
    "Blocked",
    "Environment",
    "History",
    "NonDeterminism",
    "Publication",
    "RunFailed",
    "TestRun",
    "replay",
]
