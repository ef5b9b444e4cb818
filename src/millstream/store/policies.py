"""Retry policies, timeouts, visibilities, agents and what waits in gates as compact JSON text."""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import Any

from millstream.domain.agents import DEFAULT_OPTIONS, AgentSpec, Collect, Join, Subscription, TypeOptions
from millstream.domain.artifacts import PUBLIC, Visibility
from millstream.domain.bounds import UNBOUND, Bounds
from millstream.domain.gates import Part
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts

_MOST = 4096


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@functools.lru_cache(_MOST)
def policy_text(retry: RetryPolicy, timeouts: Timeouts) -> str:
    """A task's policy; "" for the defaults."""
    if retry == DEFAULT_RETRY and timeouts == DEFAULT_TIMEOUTS:
        return ""
    return _dump([asdict(retry), asdict(timeouts)])


@functools.lru_cache(_MOST)
def policy_of(text: str) -> tuple[RetryPolicy, Timeouts]:
    """The reverse of policy_text."""
    if not text:
        return DEFAULT_RETRY, DEFAULT_TIMEOUTS
    retry, timeouts = json.loads(text)
    return _retry(retry), Timeouts(**timeouts)


@functools.lru_cache(_MOST)
def bounds_text(bounds: Bounds) -> str:
    """Bounds by key; "" for none."""
    return "" if bounds == UNBOUND else _dump(astuple(bounds))


@functools.lru_cache(_MOST)
def bounds_of(text: str) -> Bounds:
    """The reverse of bounds_text."""
    return Bounds(*json.loads(text)) if text else UNBOUND


def starts_text(starts: Sequence[tuple[int, int]]) -> str:
    """Starts of a line; "" for none."""
    return _dump(starts) if starts else ""


def starts_of(text: str) -> list[tuple[int, int]]:
    """The reverse of starts_text."""
    return [(at_us, count) for at_us, count in json.loads(text)] if text else []


def _retry(fields: dict[str, Any]) -> RetryPolicy:
    return RetryPolicy(**_tuples(fields))


def options_text(options: TypeOptions) -> str:
    """Options of a type; "" for the defaults."""
    return "" if options == DEFAULT_OPTIONS else _dump(asdict(options))


def options_of(text: str) -> TypeOptions:
    """The reverse of options_text."""
    return TypeOptions(**_tuples(json.loads(text))) if text else DEFAULT_OPTIONS


@functools.lru_cache(_MOST)
def visibility_text(visibility: Visibility) -> str:
    """A visibility; "" for Public."""
    return "" if visibility == PUBLIC else _dump(asdict(visibility))


@functools.lru_cache(_MOST)
def visibility_of(text: str) -> Visibility:
    """The reverse of visibility_text."""
    return _visibility(json.loads(text)) if text else PUBLIC


def _visibility(fields: dict[str, Any]) -> Visibility:
    return Visibility(
        kind=fields["kind"],
        agents=tuple(fields["agents"]),
        required_labels=tuple(fields["required_labels"]),
        tenant_id=fields["tenant_id"],
        ttl_us=fields["ttl_us"],
        then=_visibility(fields["then"]) if fields["then"] else None,
    )


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _subscription(fields: dict[str, Any]) -> Subscription:
    join, batch = fields.pop("join", None), fields.pop("batch", None)
    counts = tuple((name, count) for name, count in fields.pop("counts", ()))
    return Subscription(
        **_tuples(fields),
        counts=counts,
        join=Join(**join) if join else None,
        batch=Collect(**batch) if batch else None,
    )


def parts_text(parts: Sequence[Part]) -> str:
    """What waits in a buffer; "" for nothing."""
    return _dump([astuple(part) for part in parts]) if parts else ""


def parts_of(text: str) -> list[Part]:
    """The reverse of parts_text."""
    return [Part(*fields) for fields in json.loads(text)] if text else []


def spec_text(spec: AgentSpec) -> str:
    """An agent's specification. What a subscription does not use is left out: servers of the version before, which do
    not know of it, read the rest."""
    fields = asdict(spec)
    # Columns of their own: a server of the version before reads the rest, and servers find the agents that they call.
    del fields["protocol"], fields["url"]
    for subscription in fields["subscriptions"]:
        for name in ("counts", "join", "batch", "scope", "wait_us"):
            if not subscription[name]:
                del subscription[name]
    return _dump(fields)


def spec_of(text: str) -> AgentSpec:
    """The reverse of spec_text."""
    fields = json.loads(text)
    subscriptions = tuple(_subscription(item) for item in fields.pop("subscriptions"))
    retry, timeouts = _retry(fields.pop("retry")), Timeouts(**fields.pop("timeouts"))
    return AgentSpec(subscriptions=subscriptions, retry=retry, timeouts=timeouts, **_tuples(fields))
