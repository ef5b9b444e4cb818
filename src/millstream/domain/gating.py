"""What happens at gates: an artifact waits, a gate opens, what waited too long is given up."""

from collections.abc import Container, Sequence

from millstream.domain.agents import Activation
from millstream.domain.artifacts import Artifact
from millstream.domain.batch import Batch
from millstream.domain.gates import PARTS_MOST, Buffer, Gate, Part, buffer_id, complete, counted, outdated
from millstream.domain.lifecycle import create, details, end_if_idle, refuse
from millstream.domain.planners import too_many_tasks
from millstream.domain.runs import EventType, Run, RunKind, Task

PARENTS_MOST = PARTS_MOST
"""Parents that a run names: those of all parts that a gate can hold."""


def enter(batch: Batch, run: Run, artifact: Artifact, start: Activation, depth: int, ids: tuple[str, str]) -> None:
    """Let an artifact wait in the gate of an activation, and open it where that completes it.

    Args:
        ids: For the task and, of a tenant's gate, the run that it starts.
    """
    gate = start.gate
    assert gate is not None  # noqa: S101  (the planner sends nothing else here)
    buffer = _buffer(batch, run, start, gate)
    reason = _no_room(batch, run, gate, buffer)
    if reason:
        refuse(batch, run, start.agent, artifact.id, reason)
        return
    waited = bool(buffer.parts)
    buffer.arrived += 1
    if gate.window:
        _give_up(batch, buffer, outdated(gate.wait_us, gate.window, buffer, batch.now_us), "WINDOW_PASSED")
    part = Part(
        artifact.type, start.key, artifact.id, run.id, depth, buffer.arrived, batch.now_us,
        batch.now_us + start.delay_us, len(artifact.payload),
    )  # fmt: skip
    buffer.parts.append(part)
    opening = complete(gate, buffer.parts, part.key)
    if opening:
        _open(batch, run, buffer, start, opening, ids, "COMPLETE" if gate.need else "FULL")
    else:
        same = [each for each in buffer.parts if each.key == part.key]
        data = details(agent=start.agent, have=counted(same), need=dict(gate.need) or gate.size)
        batch.record(run, EventType.GATE_WAITING, artifact_id=artifact.id, data=data)
        batch.touch(run)
    _settle(batch, run, buffer, gate, waited)


def fall_due(
    batch: Batch, buffer: Buffer, start: Activation | None, ids: tuple[str, str], locked: Container[str]
) -> None:
    """Hand over a batch whose time has come, or give up parts that waited too long.

    Args:
        start: What the gate activates; None where its subscription is gone.
        locked: Runs that may be told.
    """
    if not buffer.parts or buffer.expires_us > batch.now_us:
        return
    run = batch.runs.get(buffer.run_id)
    gate = start.gate if start is not None else None
    if start is not None and gate is not None and gate.collects:
        _open(batch, run, buffer, start, [*buffer.parts], ids, "TIMEOUT")
    else:
        late = outdated(gate.wait_us, gate.window, buffer, batch.now_us) if gate is not None else [*buffer.parts]
        late = [part for part in late if part.run_id in locked]
        _give_up(batch, buffer, late, "TIMEOUT" if gate is not None else "SUBSCRIPTION_GONE")
    _settle(batch, run, buffer, gate, True)
    if run is not None:
        end_if_idle(batch, run)


def abandon(batch: Batch, run: Run) -> None:
    """Give up all that waits in a run: it is being cancelled. Its buffers must be loaded."""
    for buffer in sorted(batch.buffers.values(), key=lambda each: (each.agent, each.sub, each.key)):
        if buffer.run_id == run.id and buffer.parts:
            _give_up(batch, buffer, [*buffer.parts], "CANCELLED")
            _settle(batch, run, buffer, None, True)


def start_task(
    batch: Batch, run: Run, start: Activation, task_id: str, artifact_ids: tuple[str, ...], depth: int, run_at_us: int
) -> None:
    """Make the task of an activated agent."""
    task = Task(
        task_id, run.id, run.tenant, start.kind, start.queue, batch.now_us, run.day,
        priority=start.priority, run_at_us=run_at_us, depth=depth, limited=start.limited, agent=start.agent,
        artifact_ids=artifact_ids, retry=start.retry, timeouts=start.timeouts,
    )  # fmt: skip
    create(batch, run, task)


def _buffer(batch: Batch, run: Run, start: Activation, gate: Gate) -> Buffer:
    place = "" if gate.tenant_wide else run.id
    found_id = buffer_id(run.tenant, start.agent, gate, run.id, start.key)
    buffer = batch.buffers.get(found_id)
    if buffer is None:
        key = "" if gate.window else start.key
        buffer = Buffer(found_id, run.tenant, start.agent, gate.sub, place, key, gate.collects, batch.now_us, 0)
        batch.buffers[found_id] = buffer
    return buffer


def _no_room(batch: Batch, run: Run, gate: Gate, buffer: Buffer) -> str:
    """Why nothing more may wait; "" where it may."""
    if len(buffer.parts) >= PARTS_MOST:
        return (
            f"the limit of {PARTS_MOST} artifacts that wait in a gate is reached for agent {buffer.agent}: this one was"
            " not taken; make its gate open sooner, with lower counts, a shorter time or a more selective where"
        )
    if buffer.parts:
        return ""
    full = (run.tenant, gate.sub) in batch.full if gate.tenant_wide else run.open_gates >= batch.limits.max_gates
    if not full:
        return ""
    return (
        f"the limit of {batch.limits.max_gates} keys (max_waiting_keys) whose artifacts wait is reached for agent"
        f" {buffer.agent}: this one was not taken; raise it, or let what waits expire sooner"
    )


def _open(
    batch: Batch,
    run: Run | None,
    buffer: Buffer,
    start: Activation,
    parts: Sequence[Part],
    ids: tuple[str, str],
    reason: str,
) -> None:
    """Start the agent with these parts: in their run, or of a tenant's gate in a new one."""
    taken = {part.number for part in parts}
    buffer.parts = [part for part in buffer.parts if part.number not in taken]
    task_id, run_id = ids
    if start.gate is not None and start.gate.tenant_wide:
        parents = tuple(dict.fromkeys(part.run_id for part in parts))[:PARENTS_MOST]
        run = Run(
            run_id, buffer.tenant, RunKind.CASCADE, batch.now_us, f"gate:{start.agent}", updated_us=batch.now_us,
            parents=parents,
        )  # fmt: skip
        batch.add_run(run)
    assert run is not None  # noqa: S101  (a correlation's buffer is decided with its run)
    if run.task_count >= batch.limits.max_tasks:
        refuse(batch, run, start.agent, parts[-1].artifact_id, too_many_tasks(batch.limits))
        return
    data = details(agent=start.agent, parts=counted(parts), reason=reason)
    batch.record(run, EventType.GATE_FIRED, task_id=task_id, data=data)
    run_at_us = max(batch.now_us, *(part.visible_us for part in parts))
    depth = max(part.depth for part in parts)
    start_task(batch, run, start, task_id, tuple(part.artifact_id for part in parts), depth, run_at_us)


def _give_up(batch: Batch, buffer: Buffer, parts: Sequence[Part], reason: str) -> None:
    """Let parts go that waited in vain; their runs are told."""
    if not parts:
        return
    gone = {part.number for part in parts}
    buffer.parts = [part for part in buffer.parts if part.number not in gone]
    for part in parts:
        run = batch.runs.get(part.run_id)
        if run is not None:
            data = details(agent=buffer.agent, reason=reason)
            batch.record(run, EventType.GATE_EXPIRED, artifact_id=part.artifact_id, data=data)
            batch.touch(run)


def _settle(batch: Batch, run: Run | None, buffer: Buffer, gate: Gate | None, waited: bool) -> None:
    """Note what became of a buffer: whether it keeps its run open, and when it is due."""
    batch.dirty_buffers[buffer.id] = buffer
    if buffer.parts:
        buffer.opened_us = buffer.parts[0].at_us
        if gate is not None:
            buffer.expires_us = buffer.opened_us + gate.wait_us
        batch.schedule(buffer.expires_us)
    if buffer.run_id and run is not None and waited != bool(buffer.parts):
        run.open_gates += 1 if buffer.parts else -1
        batch.touch(run)
