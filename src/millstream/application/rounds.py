"""Commands whose items were matched against a registry that may move meanwhile."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from millstream.application.catalog import Catalogs
from millstream.application.engine.commands import Command
from millstream.application.engine.queue import Outcome, RegistryMoved
from millstream.domain.errors import MillstreamError, Unavailable

MATCH_ROUNDS = 10
"""How often an item is matched again because agents or types moved."""
ItemT = TypeVar("ItemT")
Made = tuple[Command, MillstreamError | None]
"""A command, and what is wrong with its item, where the command stores that."""


async def in_rounds(
    catalogs: Catalogs,
    tenant: str,
    items: Sequence[ItemT],
    make: Callable[[ItemT], Awaitable[Made]],
    submit: Callable[[Sequence[Command]], Awaitable[Sequence[Outcome]]],
) -> list[MillstreamError | None]:
    """Submit a command for each item, made anew where the registry has moved; what refused each, in their order."""
    errors: list[MillstreamError | None] = [None] * len(items)
    left = list(range(len(items)))
    for _ in range(MATCH_ROUNDS):
        commands: list[Command] = []
        for index in left:
            command, errors[index] = await make(items[index])
            commands.append(command)
        moved = []
        for index, outcome in zip(left, await submit(commands), strict=True):
            if isinstance(outcome, RegistryMoved):
                moved.append(index)
            elif isinstance(outcome, MillstreamError) and errors[index] is None:
                errors[index] = outcome
        left = moved
        if not left:
            break
        await catalogs.get(tenant, fresh=True)
    for index in left:
        errors[index] = Unavailable("the registry keeps moving; try again")
    return errors
