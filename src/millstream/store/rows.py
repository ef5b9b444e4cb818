"""Rows as the domain's values."""

from dataclasses import replace
from typing import Any

from millstream.domain.agents import Agent, ArtifactType
from millstream.domain.artifacts import Artifact
from millstream.domain.bounds import Line
from millstream.domain.gates import Buffer
from millstream.domain.runs import (
    Attempt,
    AttemptStatus,
    Event,
    EventType,
    Run,
    RunKind,
    RunStatus,
    Task,
    TaskStatus,
)
from millstream.store.policies import bounds_of, options_of, parts_of, policy_of, spec_of, starts_of, visibility_of

Row = Any
"""An asyncpg record, or a mapping like one."""

RUN_COLUMNS = """id::text, tenant, kind, status, created_us, created_by, updated_us, finished_us, last_seq,
open_tasks, task_count, failed_tasks, artifact_count, cancel_by_us, keep_until_us, labels, error_code,
error_message, waiters, open_gates, parents, workflow, workflow_version, plan, redone, due_us, parent_id::text,
parent_task::text, paused_us, timeout_us, deadline_us, rerun_of::text, queue, priority,
trace"""
TASK_COLUMNS = """id::text, run_id::text, tenant, kind, queue, created_us, day, status, urgency, run_at_us,
start_by_us, attempt, tries, started_us, finished_us, lease_until_us, deadline_us, beat_by_us, owner,
worker_id, worker_name, delivered, cancelling, depth, limited, agent, artifact_ids, input, policy, labels,
error_code, error_message, progress, progress_message, step, item, promise_key, held_us, bounds, waits_for, dropped,
trace"""
ARTIFACT_COLUMNS = """id::text, tenant, run_id::text, seq, type, version, payload, produced_by, visibility, tags,
partition_key, created_us, published_by, payload_digest, payload_bytes"""
BUFFER_COLUMNS = """id::text, tenant, agent, sub, run_id::text, key, collects, opened_us, expires_us, arrived, parts"""
EVENT_COLUMNS = "run_id::text, day, seq, type, at_us, task_id::text, artifact_id::text, attempt, data"
ATTEMPT_COLUMNS = """task_id::text, number, day, status, started_us, finished_us, worker_name, error_code,
error_message, output"""


def fraction_of(value: float) -> float:
    """A fraction that the database keeps in four bytes, as it was given: of 0.4 they make 0.4000000059604645."""
    return float(f"{value:.7g}") if value else 0.0


def run_of(row: Row) -> Run:
    """A row of `run` by RUN_COLUMNS."""
    fields = dict(row)
    waiters, parents = fields.pop("waiters"), fields.pop("parents")
    return Run(
        **{
            **fields,
            "kind": RunKind(fields["kind"]),
            "status": RunStatus(fields["status"]),
            "waiters": tuple(waiters.split(",")) if waiters else (),
            "parents": tuple(parents.split(",")) if parents else (),
            "parent_id": fields["parent_id"] or "",
            "parent_task": fields["parent_task"] or "",
            "rerun_of": fields["rerun_of"] or "",
            "stored_us": fields["updated_us"],
        }
    )


def task_of(row: Row) -> Task:
    """A row of `task` by TASK_COLUMNS."""
    fields = dict(row)
    # It stands in the bounds, and in a column for its index.
    fields.pop("concurrency_key", None)
    retry, timeouts = policy_of(fields.pop("policy"))
    ids = fields.pop("artifact_ids")
    return Task(
        priority=-fields.pop("urgency"),
        artifact_ids=tuple(ids.split(",")) if ids else (),
        retry=retry,
        timeouts=timeouts,
        bounds=bounds_of(fields.pop("bounds")),
        status=TaskStatus(fields.pop("status")),
        progress=fraction_of(fields.pop("progress")),
        **fields,
    )


def artifact_of(row: Row) -> Artifact:
    """A row of `artifact` by ARTIFACT_COLUMNS."""
    fields = dict(row)
    return Artifact(visibility=visibility_of(fields.pop("visibility")), tags=tuple(fields.pop("tags")), **fields)


def buffer_of(row: Row) -> Buffer:
    """A row of `buffer` by BUFFER_COLUMNS."""
    fields = dict(row)
    return Buffer(**{**fields, "run_id": fields["run_id"] or "", "parts": parts_of(fields["parts"])}, stored=True)


def line_of(row: Row) -> Line:
    """A row of `line`, without what runs."""
    return Line(row["name"], period_us=row["period_us"], starts=starts_of(row["starts"]))


def event_of(row: Row) -> Event:
    """A row of `event` by EVENT_COLUMNS."""
    fields = dict(row)
    for name in ("task_id", "artifact_id"):
        fields[name] = fields[name] or ""
    return Event(**{**fields, "type": EventType(fields["type"])})


def attempt_of(row: Row) -> Attempt:
    """A row of `attempt` by ATTEMPT_COLUMNS."""
    fields = dict(row)
    return Attempt(**{**fields, "status": AttemptStatus(fields["status"])})


def agent_of(row: Row) -> Agent:
    """A row of `agent` or `agent_deleted`."""
    fields = dict(row)
    spec = spec_of(row["spec"])
    if row["protocol"]:
        spec = replace(spec, protocol=row["protocol"], url=row["url"])
    return Agent(
        str(row["id"]), row["tenant"], spec, row["version"], row["created_us"], row["updated_us"],
        fields.get("deleted_us", 0),
    )  # fmt: skip


def type_of(row: Row) -> ArtifactType:
    """A row of `artifact_type`."""
    return ArtifactType(
        row["tenant"],
        row["name"],
        row["version"],
        row["schema"],
        row["description"],
        row["created_us"],
        options_of(row["options"]),
    )
