"""Retry policies, timeouts, visibilities and agents as compact JSON text."""

import functools
import json
from dataclasses import asdict
from typing import Any

from millstream.domain.agents import AgentSpec, Subscription
from millstream.domain.artifacts import PUBLIC, Visibility
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


def _retry(fields: dict[str, Any]) -> RetryPolicy:
    return RetryPolicy(**_tuples(fields))


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


def spec_text(spec: AgentSpec) -> str:
    """An agent's specification."""
    return _dump(asdict(spec))


def spec_of(text: str) -> AgentSpec:
    """The reverse of spec_text."""
    fields = json.loads(text)
    subscriptions = tuple(Subscription(**_tuples(item)) for item in fields.pop("subscriptions"))
    retry, timeouts = _retry(fields.pop("retry")), Timeouts(**fields.pop("timeouts"))
    return AgentSpec(subscriptions=subscriptions, retry=retry, timeouts=timeouts, **_tuples(fields))
