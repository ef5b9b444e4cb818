"""The planner of code-first runs against a reference that knows nothing of tasks, leases and rows. (FV-18)"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millstream.domain.batch import Batch, Claim, Limits
from millstream.domain.cancellation import cancel_run, force_run
from millstream.domain.code import CancelStep, CommandType, End, EndType, EntryType, Given, Note, StartTask, StartTimer
from millstream.domain.code_runs import Answer, NewRun, answer, begin, signal
from millstream.domain.errors import Conflict, LeaseLost
from millstream.domain.lifecycle import fail, lease, lose
from millstream.domain.publication import complete
from millstream.domain.retry import RetryPolicy, Timeouts
from millstream.domain.retrying import retry_run
from millstream.domain.runs import TIMER_QUEUE, Run, RunKind, RunStatus, Task, TaskStatus
from millstream.domain.settling import settle

RUN = "01900000-0000-7000-8000-000000000001"
ONCE = RetryPolicy(max_attempts=1)


class CodeRun(RuleBasedStateMachine):
    """One run, its tasks and a worker that may or may not be there; each rule is a transaction of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 1_000_000
        self.ids = 0
        self.workers = True
        self.run: Run
        self.tasks: dict[str, Task] = {}
        # The reference: what the code is to be told, and what of it an accepted answer has seen.
        self.told: list[tuple[int, EntryType, int]] = []
        self.seen = 0
        self.count = 0
        self.since, self.acted = 1, 0
        self.held: tuple[int, int] | None = None
        self.over = False
        batch = self.batch()
        self.run = begin(batch, RUN, "acme", "me", NewRun("flow", "1", b""))
        self.settle(batch)

    # -- the world --------------------------------------------------------------------------------------------

    def batch(self) -> Batch:
        """A transaction with everything loaded."""
        self.now_us += 1_000_000

        def offer(task: Task) -> Claim | None:
            return Claim("session", "worker", "worker", arrived=True) if self.workers and task.leads else None

        batch = Batch(self.now_us, "lane", Limits(max_commands=10_000), offer, offer, lambda: 0.5)
        if hasattr(self, "run"):
            batch.runs = {RUN: self.run}
        batch.tasks = dict(self.tasks)
        return batch

    def settle(self, batch: Batch) -> None:
        """The transaction is committed."""
        self.run.stored_us = self.run.updated_us
        self.tasks |= batch.dirty_tasks
        self.told += [(entry.seq, entry.type, entry.step) for entry in batch.entries.get(RUN, ())]
        for handoff in batch.handoffs:
            assert handoff.task.leads, "nobody else serves anything"
            assert handoff.activation is not None
            assert self.held is None, "one activation at a time"
            assert handoff.activation.base == self.told[-1][0]
            assert (handoff.activation.seen, handoff.activation.count) == (self.seen, self.count)
            self.held = (handoff.attempt, handoff.activation.base)

    @property
    def lead(self) -> Task:
        return self.tasks[RUN]

    def open_steps(self, queue: str = "") -> list[Task]:
        return [each for each in self.tasks.values() if each.open and not each.leads and queue in ("", each.queue)]

    # -- what happens -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.held is not None)
    @rule(
        kinds=st.lists(st.sampled_from(["task", "timer", "note", "cancel"]), max_size=3),
        end=st.sampled_from([None, None, None, EndType.COMPLETED, EndType.FAILED, EndType.CONTINUED]),
    )
    def the_code_answers(self, kinds: list[str], end: EndType | None) -> None:
        assert self.held is not None
        (attempt, base), self.held = self.held, None
        whats: list[Any] = []
        for kind in kinds:
            if kind == "task":
                whats.append(StartTask("step", b"", "", 0, 0, ONCE, Timeouts(), ""))
            elif kind == "timer":
                whats.append(StartTimer(5_000_000))
            elif kind == "cancel" and self.open_steps():
                whats.append(CancelStep(self.open_steps()[0].step))
            else:
                whats.append(Note(CommandType.PATCH, "p"))
        given = []
        for index, what in enumerate(whats):
            self.ids += 1
            given.append(Given(self.count + 1 + index, base, what, f"task-{self.ids}"))
        batch = self.batch()
        before = len(self.told)
        more = self.told[-1][0] > base
        cancelling = self.run.status is RunStatus.CANCELLING
        said = Answer(attempt, base, given, End(end) if end else None)
        assert answer(batch, self.run, self.lead, said)
        self.seen, self.count = base, self.count + len(given)
        self.acted = base if given else self.acted
        if end is EndType.CONTINUED and not more and not cancelling:
            self.since, self.acted = self.run.last_seq, 0
            self.seen = self.since - 1
        self.settle(batch)
        assert not answer(self.batch(), self.run, self.lead, said), "the same answer counts once"
        if end and not more and (end is not EndType.CONTINUED or cancelling):
            self.over = True
            assert self.run.finished_us, "nothing was unseen, so the end counts"
        elif end is None or more:
            assert not self.run.finished_us, "the end is put off"
            assert len(self.told) == before

    @precondition(lambda self: self.held is not None)
    @rule()
    def the_worker_is_lost(self) -> None:
        self.held = None
        batch = self.batch()
        lose(batch, self.run, self.lead)
        self.settle(batch)
        if not self.lead.open:
            self.over = True
            assert self.run.status in (RunStatus.FAILED, RunStatus.CANCELLED)

    @precondition(lambda self: self.held is not None)
    @rule()
    def a_late_answer_is_refused(self) -> None:
        assert self.held is not None
        try:
            answer(self.batch(), self.run, self.lead, Answer(self.held[0] + 1, self.held[1]))
        except LeaseLost:
            return
        raise AssertionError("another attempt's answer was taken")

    @precondition(lambda self: self.open_steps("default"))
    @rule(well=st.booleans(), data=st.data())
    def a_task_ends(self, well: bool, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.open_steps("default")))
        batch = self.batch()
        task.status, task.attempt, task.delivered = TaskStatus.RUNNING, task.attempt + 1, True
        disowned = task.cancelling
        if well:
            complete(batch, self.run, task, task.attempt, b"", [])
        else:
            fail(batch, self.run, task, "BROKEN", "it is", retryable=False)
        self.settle(batch)
        expected = (EntryType.COMPLETED if well else EntryType.FAILED, task.step)
        assert disowned or self.told[-1][1:] == expected

    @precondition(lambda self: self.open_steps(TIMER_QUEUE))
    @rule(data=st.data())
    def a_timer_fires(self, data: st.DataObject) -> None:
        timer = data.draw(st.sampled_from(self.open_steps(TIMER_QUEUE)))
        batch = self.batch()
        settle(batch, self.run, timer)
        self.settle(batch)
        assert self.told[-1][1:] == (EntryType.COMPLETED, timer.step)

    @rule()
    def a_signal_comes(self) -> None:
        batch = self.batch()
        if self.run.finished_us:
            try:
                signal(batch, self.run, "go", b"")
            except Conflict:
                return
            raise AssertionError("a run that has ended takes no signals")
        seq = signal(batch, self.run, "go", b"")
        self.settle(batch)
        assert self.told[-1][:2] == (seq, EntryType.SIGNALLED)

    @precondition(lambda self: self.run.status is RunStatus.RUNNING)
    @rule()
    def it_is_cancelled(self) -> None:
        batch = self.batch()
        cancel_run(batch, self.run, list(batch.tasks.values()), "enough", "me")
        self.settle(batch)
        assert self.told[-1][1] is EntryType.CANCELLING

    @precondition(lambda self: self.run.status is RunStatus.CANCELLING)
    @rule()
    def its_grace_is_over(self) -> None:
        self.now_us = self.run.cancel_by_us
        batch = self.batch()
        force_run(batch, self.run, list(batch.tasks.values()))
        self.held = None
        self.settle(batch)
        self.over = True
        assert self.run.status is RunStatus.CANCELLED
        assert not self.open_steps()

    @precondition(lambda self: self.run.status is RunStatus.FAILED)
    @rule()
    def it_is_retried(self) -> None:
        batch = self.batch()
        self.over = False
        self.seen = max(self.acted, self.since) - 1
        retry_run(batch, self.run, list(batch.tasks.values()), "me", "mended")
        self.settle(batch)
        assert self.run.status is RunStatus.RUNNING

    @rule(there=st.booleans())
    def workers_come_and_go(self, there: bool) -> None:
        self.workers = there
        if there and self.lead.status is TaskStatus.PENDING:
            batch = self.batch()
            claim = batch.offer(self.lead)
            assert claim is not None
            lease(batch, self.run, self.lead, claim)
            self.settle(batch)

    # -- what always holds ------------------------------------------------------------------------------------

    @invariant()
    def no_wake_up_is_lost(self) -> None:
        """Where the code has not been told of all, its task is ready, or runs, or waits to be tried again."""
        if self.run.kind is RunKind.CODE and not self.run.finished_us and self.told[-1][0] > self.seen:
            asleep = self.lead.status is TaskStatus.SCHEDULED and self.lead.run_at_us > self.now_us + 10**12
            assert not asleep, "something happened that the code has not looked at, and nobody is asked to"

    @invariant()
    def counters_agree(self) -> None:
        assert self.run.open_tasks == sum(each.open for each in self.tasks.values())
        assert self.run.failed_tasks == sum(each.status is TaskStatus.FAILED for each in self.tasks.values())
        assert bool(self.run.finished_us) == (self.run.status > RunStatus.CANCELLING)

    @invariant()
    def an_end_is_an_end(self) -> None:
        assert self.over == bool(self.run.finished_us)


TestCodeRun = CodeRun.TestCase
TestCodeRun.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
