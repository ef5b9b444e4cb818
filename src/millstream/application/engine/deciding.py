"""Deciding a batch: its commands in order, each seeing the effects of those before it."""

from dataclasses import replace

from millstream.application.engine.commands import Command
from millstream.application.engine.queue import Item, Outcome, RegistryMoved, Replayed
from millstream.domain.batch import Batch, KeyClaim
from millstream.domain.errors import IdempotencyConflict, MillstreamError

Keys = dict[tuple[str, str, str, str], KeyClaim]
"""Idempotency keys that were claimed before, by primary key."""


def registry_of(items: list[Item]) -> dict[str, int]:
    """The newest version of each tenant's registry that the commands were matched with."""
    found: dict[str, int] = {}
    for item in items:
        if item.command.registry is not None:
            tenant, version = item.command.registry
            found[tenant] = max(found.get(tenant, 0), version)
    return found


def decide(batch: Batch, items: list[Item], keys: Keys, registry: dict[str, int]) -> list[Outcome]:
    """Decide commands in the batch. One that its own rule refuses fails alone; one that was matched with another
    registry than this has to be matched again."""
    outcomes: list[Outcome] = []
    for item in items:
        command = item.command
        if command.registry is not None and registry.get(command.registry[0]) != command.registry[1]:
            outcomes.append(RegistryMoved())
            continue
        batch.trace = command.trace
        try:
            outcomes.append(_decide_one(batch, command, keys))
        except MillstreamError as error:
            outcomes.append(error)
    return outcomes


def _decide_one(batch: Batch, command: Command, keys: Keys) -> Outcome:
    claim, business = command.key, command.business_key
    if claim is None and business is None:
        return command.decide(batch)
    if claim is not None:
        first = batch.claims.get(claim.id) or keys.get(claim.id)
        if first is not None:
            if first.fingerprint != claim.fingerprint:
                raise IdempotencyConflict(f"the idempotency key {claim.key!r} was used with another request")
            return Replayed(first)
    if business is not None:
        first = batch.claims.get(business.id) or keys.get(business.id)
        if first is not None:
            if claim is not None:
                # The call succeeded: its own key gives this answer from now on, whatever becomes of the other.
                batch.claims[claim.id] = replace(claim, response=first.response)
            return Replayed(first)
    result = command.decide(batch)
    for each in (claim, business):
        if each is not None:
            batch.claims[each.id] = each
    return result
