"""Scenarios: each tries a worker in one way, and names the rules that it checks."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

STREAM: Final = "stream"
POLL: Final = "poll"
TRANSPORTS: Final = (STREAM, POLL)
"""How workers take their tasks: by the stream Work, or by Poll and the other unary calls."""

Play: TypeAlias = Callable[[Any], Awaitable[None]]
"""Of a stream it takes a Bench, of polls a PollBench."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to try a worker; `rules` are those that it is made to check, beside those of every stream."""

    name: str
    title: str
    rules: tuple[str, ...]
    play: Play
    transport: str = STREAM


ALWAYS: Final[Mapping[str, tuple[str, ...]]] = {
    STREAM: ("W1", "W2", "W3", "W4", "W5", "W8", "W11", "W17", "W18"),
    POLL: ("W3", "W4", "W17", "W18", "W39", "W40"),
}
"""Rules that every scenario of a transport checks, on every message of every stream, or on every call."""


class Book:
    """The scenarios of one subject, in order."""

    def __init__(self, transport: str = STREAM) -> None:
        self._transport = transport
        self.scenarios: list[Scenario] = []

    def add(self, name: str, title: str, *rules: str) -> Callable[[Play], Play]:
        """Adds a scenario."""

        def register(play: Play) -> Play:
            self.scenarios.append(Scenario(name, title, rules, play, self._transport))
            return play

        return register
