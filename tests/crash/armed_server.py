"""A `millstream serve` that kills or stops itself at a point of the committer, for the tests of crash points.

Run as a script. On SIGUSR1 it reads the JSON file that CRASH_ARM names: {"point", "nth", "signal", "owner_path"}; from
then on it sends itself the signal the nth time that it comes to the point. The product has no part in this but
`Committer.at`.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

from millstream import bootstrap
from millstream.adapters.metrics import Metrics
from millstream.config import Settings, load
from millstream.domain.batch import Batch
from millstream.wiring import Service, wire


class Trap:
    """Where this process ends."""

    def __init__(self) -> None:
        self.point = ""
        self.left = 0
        self.number = signal.SIGKILL

    def reached(self, point: str) -> None:
        """The committer came to a point."""
        if point != self.point or self.left <= 0:
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def set(self, service: Service) -> None:
        """Take the orders from the file."""
        orders = json.loads(Path(os.environ["CRASH_ARM"]).read_text())
        for committer in (service.engine.committer, service.engine._blocked):
            committer._sizes = replace(committer._sizes, owner_path=orders["owner_path"])
        self.point, self.left, self.number = orders["point"], orders["nth"], signal.Signals(orders["signal"])


async def armed(settings: Settings, metrics: Metrics) -> Service:
    """The service, wired as ever, with the trap in its committers."""
    service = await wire(settings, metrics)
    trap = Trap()
    hooks = service.engine.committer._hooks
    committed = hooks.committed

    def pushing(batch: Batch) -> None:
        # Of interest is only what has something to push: a lease, or the end that a caller waits for.
        if batch.handoffs or batch.ended:
            trap.reached("before push")
        committed(batch)
        trap.reached("after push")

    for committer in (service.engine.committer, service.engine._blocked):
        committer.at = trap.reached
        committer._hooks.committed = pushing
    signal.signal(signal.SIGUSR1, lambda *_: trap.set(service))
    return service


if __name__ == "__main__":
    with mock.patch.object(bootstrap, "wire", armed):
        sys.exit(bootstrap.run(load()))
