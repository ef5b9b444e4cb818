"""Scenarios: each tries a worker in one way, and names the rules that it checks."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from millstream.conformance.bench import Bench

Play: TypeAlias = Callable[[Bench], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to try a worker; `rules` are those that it is made to check, beside those of every stream."""

    name: str
    title: str
    rules: tuple[str, ...]
    play: Play


ALWAYS: Final = ("W1", "W2", "W3", "W4", "W5", "W8", "W11", "W17", "W18")
"""Rules that every scenario checks, on every message of every stream."""


class Book:
    """The scenarios of one subject, in order."""

    def __init__(self) -> None:
        self.scenarios: list[Scenario] = []

    def add(self, name: str, title: str, *rules: str) -> Callable[[Play], Play]:
        """Adds a scenario."""

        def register(play: Play) -> Play:
            self.scenarios.append(Scenario(name, title, rules, play))
            return play

        return register
