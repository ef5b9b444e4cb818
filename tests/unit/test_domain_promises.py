"""What promises are by themselves: made, settled once, and refused without a trace."""

import pytest

from millstream.application.engine.promise_commands import WAITERS_MOST, AwaitPromise
from millstream.domain.batch import Batch, Limits
from millstream.domain.errors import Conflict
from millstream.domain.promises import (
    NewPromise,
    PromiseState,
    Rejection,
    Resolution,
    create_promise,
    promise_task,
    settle_promise,
    state_of,
    time_out,
)
from millstream.domain.runs import EventType, Run, RunKind, RunStatus, Task, TaskStatus

NOW = 1_700_000_000_000_000


def world(kind: RunKind = RunKind.SINGLE) -> tuple[Batch, Run]:
    """A batch with a new run."""
    batch = Batch(NOW, "lane", Limits(), lambda task: None, lambda task: None, lambda: 0.5)
    run = Run("r", "acme", kind, NOW)
    batch.add_run(run)
    return batch, run


def made(batch: Batch, run: Run, task_id: str = "t", key: str = "") -> Task:
    """A promise of the run."""
    task = promise_task(run, task_id, NewPromise("approval", key, timeout_us=1_000_000), NOW)
    create_promise(batch, run, task)
    return task


def kinds(batch: Batch) -> list[str]:
    """Names of the events so far."""
    return [EventType(event[3]).name for event in batch.events]


def test_a_promise_waits_for_nobody_but_its_time() -> None:
    """FV-17: PENDING, offered to no worker, and due when its time has passed."""
    batch, run = world()
    task = made(batch, run)
    assert (task.status, task.start_by_us, batch.scheduled_us) == (TaskStatus.PENDING, NOW + 1_000_000, NOW + 1_000_000)
    assert (batch.ready, batch.waiting, batch.handoffs) == (set(), [], [])
    assert state_of(task) is PromiseState.PENDING


def test_a_key_is_refused_without_a_trace_while_an_open_promise_has_it() -> None:
    """FV-17: within one batch too; of another tenant it is another key."""
    batch, run = world()
    batch.open_promises["acme", "k1"] = "other"
    made(batch, run, "t", "k2")
    before = (len(batch.events), run.task_count, set(batch.dirty_tasks))
    for key, holder in (("k1", "other"), ("k2", "t")):
        with pytest.raises(Conflict, match=f"'{key}' is that of promise {holder}"):
            made(batch, run, "u", key)
    assert (len(batch.events), run.task_count, set(batch.dirty_tasks)) == before
    batch.open_promises["umbrella", "k3"] = "other"
    made(batch, run, "u", "k3")


@pytest.mark.parametrize(
    ("outcome", "status", "run_status", "told"),
    [
        (
            Resolution(b"v"), TaskStatus.COMPLETED, RunStatus.COMPLETED,
            ("PROMISE_RESOLVED", "TASK_COMPLETED", "RUN_COMPLETED"),
        ),
        (
            Rejection("", "no"), TaskStatus.FAILED, RunStatus.FAILED,
            ("PROMISE_REJECTED", "TASK_FAILED", "RUN_FAILED"),
        ),
    ],
)  # fmt: skip
def test_a_promise_is_settled_once(
    outcome: Resolution | Rejection, status: TaskStatus, run_status: RunStatus, told: tuple[str, ...]
) -> None:
    """FV-17: with one attempt that has its value or error, and who settled it."""
    batch, run = world()
    task = made(batch, run)
    settle_promise(batch, run, task, outcome, "ann")
    assert (task.status, run.status, task.attempt, task.worker_name) == (status, run_status, 1, "ann")
    assert kinds(batch)[-3:] == [*told]
    (attempt,) = batch.attempts
    if isinstance(outcome, Resolution):
        assert attempt.output == b"v"
    else:
        assert (attempt.error_code, attempt.error_message) == ("REJECTED", "no")
    for again in (outcome, Resolution(b"w")):
        with pytest.raises(Conflict):
            settle_promise(batch, run, task, again, "bob")
    assert (task.worker_name, len(batch.attempts)) == ("ann", 1)


def test_a_time_out_is_judged_again() -> None:
    """FV-17: not before its time, and never where somebody was first."""
    batch, run = world()
    task = made(batch, run)
    time_out(batch, run, task)
    assert task.status is TaskStatus.PENDING
    batch.now_us = NOW + 1_000_000
    time_out(batch, run, task)
    assert (task.status, task.error_code, task.worker_name) == (TaskStatus.FAILED, "PROMISE_TIMEOUT", "")
    other = made(*world())
    settled_batch, settled_run = world()
    settled = made(settled_batch, settled_run)
    settle_promise(settled_batch, settled_run, settled, Resolution(b""), "ann")
    settled_batch.now_us = NOW + 2_000_000
    time_out(settled_batch, settled_run, settled)
    assert settled.status is TaskStatus.COMPLETED
    assert other.status is TaskStatus.PENDING


def test_so_many_servers_are_woken_and_no_more() -> None:
    """Invariant: nothing without a bound: the latest that waited, each once."""
    batch, run = world()
    task = made(batch, run)
    for number in (*range(WAITERS_MOST + 5), WAITERS_MOST):
        AwaitPromise(task_ids=(task.id,), tenant="acme", waiter=f"lane {number}").decide(batch)
    assert run.waiters == tuple(f"lane {number}" for number in range(5, WAITERS_MOST + 5))
