"""The bounded queue in front of the committer."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from millstream.application.engine.commands import Command
from millstream.domain.batch import KeyClaim
from millstream.domain.errors import MillstreamError, RateLimited


@dataclass(frozen=True, slots=True)
class Replayed:
    """The key was used by the same request before: its effect stands, nothing was done now."""

    claim: KeyClaim


class RegistryMoved(Exception):
    """Agents or types changed between matching and the transaction: match again."""


Outcome = Any
"""The command's result, or Replayed, a MillstreamError or RegistryMoved."""


@dataclass(slots=True)
class Group:
    """Commands submitted together; one future for all, their outcomes in order."""

    future: "asyncio.Future[list[Outcome]]"
    outcomes: list[Outcome]
    left: int


@dataclass(slots=True)
class Item:
    """A command in the queue. `rounds`: how often it was put back."""

    command: Command
    group: Group
    index: int
    rounds: int = 0
    resolved: bool = False

    def resolve(self, outcome: Outcome) -> None:
        """Note the outcome, and answer the caller once its group is complete. The first outcome stands."""
        if self.resolved:
            return
        self.resolved = True
        group = self.group
        group.outcomes[self.index] = outcome
        group.left -= 1
        if group.left == 0 and not group.future.done():
            group.future.set_result(group.outcomes)


@dataclass(slots=True)
class CommandQueue:
    """Commands that wait for the committer, bounded in number and bytes.

    Attributes:
        most: Commands at most.
        most_bytes: Bytes at most.
    """

    most: int = 20_000
    most_bytes: int = 64 * 1024 * 1024
    items: deque[Item] = field(default_factory=deque)
    size_bytes: int = 0
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    moved_s: float = field(default_factory=monotonic)

    @property
    def full(self) -> bool:
        """Nothing more is let in."""
        return len(self.items) >= self.most or self.size_bytes >= self.most_bytes

    @property
    def still_s(self) -> float:
        """For how long nothing was taken, seconds, while something waited."""
        return monotonic() - self.moved_s if self.items else 0.0

    def __len__(self) -> int:
        return len(self.items)

    def put(self, commands: Sequence[Command], urgent: bool = False) -> "asyncio.Future[list[Outcome]]":
        """Queue commands. Raises RateLimited where they do not fit; `urgent` ones (results of work that was done) may
        go over the bound, since refusing them would not unload the server."""
        size = sum(command.size_bytes for command in commands)
        over = len(self.items) + len(commands) > self.most or self.size_bytes + size > self.most_bytes
        if over and not urgent and self.items:
            raise RateLimited("the server's queue is full; try again in a moment", retry_after_s=1.0)
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        group = Group(future, [None] * len(commands), len(commands))
        if not self.items:
            self.moved_s = monotonic()
        self.items.extend([Item(command, group, index) for index, command in enumerate(commands)])
        self.size_bytes += size
        self.filled.set()
        return future

    def requeue(self, items: Sequence[Item]) -> None:
        """Put commands back whose runs were locked elsewhere."""
        self.items.extend(items)
        self.size_bytes += sum(item.command.size_bytes for item in items)
        if items:
            self.filled.set()

    def take(self, most: int, most_bytes: int) -> list[Item]:
        """The next batch: at least one command, then as many as fit."""
        taken: list[Item] = []
        size = 0
        self.moved_s = monotonic()
        items = self.items
        while items and len(taken) < most:
            size += items[0].command.size_bytes
            if taken and size > most_bytes:
                break
            item = items.popleft()
            self.size_bytes -= item.command.size_bytes
            taken.append(item)
        if not items:
            self.filled.clear()
        return taken

    def fail_all(self, error: MillstreamError) -> None:
        """Answer everything that waits with an error."""
        while self.items:
            self.items.popleft().resolve(error)
        self.size_bytes = 0
        self.filled.clear()
