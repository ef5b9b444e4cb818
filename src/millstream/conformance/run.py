"""Plays scenarios, and tells how they ended."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from millstream.conformance.bench import Bench
from millstream.conformance.polling.bench import PollBench
from millstream.conformance.rules import NotServed, Violation
from millstream.conformance.scenario import POLL, STREAM, Scenario
from millstream.conformance.server import SERVICE, Server
from millstream.conformance.stand import START_S, Stand
from millstream.conformance.stream import METHOD

PATIENCE_S: Final = 10.0
_BENCHES: Final[Mapping[str, Callable[[Sequence[str], float], Stand]]] = {STREAM: Bench, POLL: PollBench}
_FIRST: Final = {METHOD: STREAM, f"{SERVICE}Poll": POLL}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a scenario ended.

    Attributes:
        skipped: It was not played, for it is about something that a worker need not do, and this one does not.
        rule: The rule that was broken; "" where none was.
        message: How it was broken.
        output: The last lines that the worker printed, where it failed.
    """

    scenario: Scenario
    passed: bool
    seconds: float
    rule: str = ""
    message: str = ""
    output: tuple[str, ...] = ()
    skipped: bool = False


async def play(
    argv: Sequence[str], scenarios: Sequence[Scenario], patience_s: float = PATIENCE_S
) -> AsyncIterator[Outcome]:
    """Plays one scenario after the other, each with a server and a worker's process of its own.

    Raises:
        OSError: the worker cannot be started.
    """
    for scenario in scenarios:
        yield await _play(argv, scenario, patience_s)


async def _play(argv: Sequence[str], scenario: Scenario, patience_s: float) -> Outcome:
    loop = asyncio.get_running_loop()
    bench = _BENCHES[scenario.transport](argv, patience_s)
    begun = loop.time()
    try:
        await bench.start()
        await scenario.play(bench)
        bench.check()
    except Violation as violation:
        spent = loop.time() - begun
        return Outcome(scenario, False, spent, violation.rule, violation.what, tuple(bench.target.lines))
    except NotServed as kind:
        return Outcome(scenario, True, loop.time() - begun, message=f"the worker does not serve {kind}", skipped=True)
    finally:
        await bench.close()
    return Outcome(scenario, True, loop.time() - begun)


class _Door(Server):
    """Sees how the worker comes, and serves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.came: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """There is none."""
        transport = _FIRST.get(handler_call_details.method)
        if transport is not None and not self.came.done():
            self.came.set_result(transport)
        return None


async def detect(argv: Sequence[str], patience_s: float = PATIENCE_S) -> str:
    """How a worker takes its tasks, by what it calls first: a stream where it calls neither.

    Raises:
        OSError: the worker cannot be started.
    """
    door = _Door()
    stand = Stand(argv, patience_s, door)
    try:
        await stand.start()
        found: str = await stand.wait("W39", "a stream or a poll", door.came, max(patience_s, START_S))
    except Violation:
        return STREAM
    finally:
        await stand.close()
    return found
