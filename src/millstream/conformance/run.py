"""Plays scenarios, and tells how they ended."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from millstream.conformance.bench import Bench
from millstream.conformance.rules import Violation
from millstream.conformance.scenario import Scenario

PATIENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a scenario ended.

    Attributes:
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
    bench = Bench(argv, patience_s)
    begun = loop.time()
    try:
        await bench.start()
        await scenario.play(bench)
        bench.check()
    except Violation as violation:
        spent = loop.time() - begun
        return Outcome(scenario, False, spent, violation.rule, violation.what, tuple(bench.target.lines))
    finally:
        await bench.close()
    return Outcome(scenario, True, loop.time() - begun)
