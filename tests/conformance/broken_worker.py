"""The worker of the examples with one fault, named by the argument: what the kit must find."""

import asyncio
import os
import runpy
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet

from millstream.sdk import context, execution, log_buffer, outbox, session, slots, worker
from millstream.v1 import worker_pb2
from millstream.v1.worker_service_pb2 import WorkRequest

EXAMPLE = Path(__file__).parents[2] / "examples" / "conformance_worker.py"
FAULTS: dict[str, Callable[[], None]] = {}


def fault(install: Callable[[], None]) -> Callable[[], None]:
    """Registers what installs a fault, by its name."""
    FAULTS[install.__name__] = install
    return install


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Puts a function around a method: it is called with the method, and its arguments."""
    method = getattr(owner, name)
    setattr(owner, name, lambda *args, **more: around(method, *args, **more))


def nothing(*_: Any, **__: Any) -> None:
    """Does nothing."""


@fault
def names_too_few_kinds() -> None:
    def around(method: Any, self: Any) -> Any:
        hello = method(self)
        hello.kinds.remove("conformance.echo")
        return hello

    wrap(worker.Worker, "_hello", around)


@fault
def describes_what_it_does_not_serve() -> None:
    def around(method: Any, self: Any) -> Any:
        hello = method(self)
        hello.kind_specs.add(kind="other")
        return hello

    wrap(worker.Worker, "_hello", around)


@fault
def shows_no_token() -> None:
    os.environ.pop("MILLSTREAM_API_KEY")


@fault
def is_another_one_each_time() -> None:
    def around(method: Any, self: Any) -> Any:
        self.worker_id = str(uuid.uuid4())
        return method(self)

    wrap(worker.Worker, "_hello", around)


@fault
def counts_its_messages_wrong() -> None:
    def around(method: Any, self: Any) -> Any:
        self._number += 1
        return method(self)

    wrap(outbox.Outbox, "take", around)


@fault
def breaks_a_field_rule() -> None:
    def around(method: Any, self: Any) -> Any:
        hello = method(self)
        hello.name = "x" * 129
        return hello

    wrap(worker.Worker, "_hello", around)


@fault
def says_hello_twice() -> None:
    def around(method: Any, self: Any) -> Any:
        raw = method(self)
        return raw and raw + WorkRequest(hello=worker_pb2.WorkerHello(protocol=1)).SerializeToString()

    wrap(outbox.Outbox, "take", around)


@fault
def names_nothing_that_it_holds() -> None:
    wrap(slots.Slots, "held", lambda method, self: [])


@fault
def gives_up_with_its_stream() -> None:
    def around(method: Any, self: Any, still_ours: Any) -> Any:
        for each in self._held.values():
            each.lost, each.credit = True, 0
        return method(self, still_ours)

    wrap(slots.Slots, "keep", around)


@fault
def keeps_what_is_lost() -> None:
    wrap(slots.Slots, "keep", lambda method, self, still_ours: [])


@fault
def tries_without_rest() -> None:
    wrap(worker.Worker, "_pause", lambda method, self, failures: 1.0 / (failures + 1))


@fault
def ends_with_its_stream() -> None:
    wrap(session.Session, "serve", lambda method, self: _serve_and_die(method, self))


async def _serve_and_die(method: Any, self: Any) -> None:
    try:
        await method(self)
    finally:
        os._exit(0)


@fault
def falls_over_unknown_fields() -> None:
    def around(method: Any, self: Any, response: Any) -> Any:
        if len(UnknownFieldSet(response)):
            os._exit(1)
        return method(self, response)

    wrap(session.Session, "_handle", around)


@fault
def asks_for_too_much() -> None:
    wrap(outbox.Outbox, "report", lambda method, self, report, credit: method(self, report, credit=credit + 1))


@fault
def keeps_its_slots() -> None:
    wrap(outbox.Outbox, "report", lambda method, self, report, credit: method(self, report, credit=0))


@fault
def runs_one_after_the_other() -> None:
    running = asyncio.Lock()

    async def one(method: Any, self: Any, threads: Any) -> Any:
        async with running:
            return await method(self, threads)

    wrap(execution.Execution, "run", one)


@fault
def acknowledges_no_arrival() -> None:
    outbox.Outbox.delivered = nothing  # type: ignore[method-assign]


@fault
def acknowledges_arrivals_with_the_report() -> None:
    kept: dict[Any, None] = {}

    def report(method: Any, self: Any, done: Any, credit: int) -> Any:
        if done.fence in kept:
            self._delivered[done.fence] = None
        return method(self, done, credit=credit)

    wrap(outbox.Outbox, "delivered", lambda method, self, fences: kept.update(dict.fromkeys(fences)))
    wrap(outbox.Outbox, "report", report)


@fault
def mistakes_nothing_for_an_object() -> None:
    def around(method: Any, self: Any, result: Any) -> Any:
        return method(self, {} if result is None else result)

    wrap(execution.Execution, "_completed", around)


@fault
def runs_what_comes_twice() -> None:
    wrap(outbox.Outbox, "reported", lambda method, self, fence: False)


@fault
def is_silent_about_unknown_kinds() -> None:
    def around(method: Any, self: Any, lease: Any, fence: Any) -> Any:
        return method(self, lease, fence) if lease.kind in self._handlers else None

    wrap(slots.Slots, "_begin", around)


@fault
def knows_only_first_attempts() -> None:
    def around(method: Any, self: Any, leases: Any) -> Any:
        for lease in leases:
            lease.attempt = 1
        return method(self, leases)

    wrap(slots.Slots, "accept", around)


@fault
def names_what_it_was_never_given() -> None:
    def around(method: Any, self: Any, fences: Any) -> None:
        method(self, [*fences, outbox.Fence(str(uuid.uuid4()), 1)])

    wrap(outbox.Outbox, "delivered", around)


@fault
def makes_up_tokens() -> None:
    context.Context.idempotency_token = property(lambda self: str(uuid.uuid4()))  # type: ignore[assignment]


@fault
def cannot_do_what_it_names() -> None:
    def around(method: Any, self: Any, kinds: Any, handlers: Any, *args: Any) -> Any:
        return method(self, kinds, {k: v for k, v in handlers.items() if k != "conformance.token"}, *args)

    wrap(slots.Slots, "__init__", around)


@fault
def forgets_when_to_try_again() -> None:
    def around(method: Any, self: Any, code: str, message: str, retryable: Any = None, retry_after: Any = None) -> Any:
        return method(self, code, message, retryable)

    wrap(execution.Execution, "_failure", around)


@fault
def publishes_nothing() -> None:
    wrap(execution, "_publishables", lambda method, result: ())


@fault
def tells_no_progress() -> None:
    outbox.Outbox.progress = nothing  # type: ignore[method-assign]


@fault
def forgets_what_was_not_acknowledged() -> None:
    def around(method: Any, self: Any) -> Any:
        method(self)
        self._reports.clear()

    wrap(outbox.Outbox, "restart", around)
    outbox.Outbox.give_credit = nothing  # type: ignore[method-assign]


@fault
def sends_again_what_was_acknowledged() -> None:
    outbox.Outbox.acknowledge = nothing  # type: ignore[method-assign]


@fault
def takes_the_last_acknowledgement_for_all() -> None:
    def around(method: Any, self: Any, number: int) -> Any:
        # Only one that is of everything sent counts: the others are passed over.
        return method(self, number) if number >= self._number else None

    wrap(outbox.Outbox, "acknowledge", around)


@fault
def dies_of_a_refusal() -> None:
    def around(method: Any, self: Any, response: Any) -> Any:
        if response.refused:
            os._exit(1)
        return method(self, response)

    wrap(session.Session, "_handle", around)


@fault
def waits_for_acknowledgements() -> None:
    wrap(outbox.Outbox, "_take_credit", lambda method, self: 0 if self._unacked else method(self))


@fault
def is_never_heard_of() -> None:
    outbox.Outbox.keep_alive = nothing  # type: ignore[method-assign]


@fault
def has_no_heart() -> None:
    outbox.Outbox.heartbeat = nothing  # type: ignore[method-assign]


@fault
def cannot_be_cancelled() -> None:
    slots.Slots._interrupt = nothing  # type: ignore[method-assign]


@fault
def reports_what_is_lost() -> None:
    wrap(slots.Slots, "cancel", lambda method, self, fence, reason: method(self, fence, "CANCELLED"))


@fault
def cancels_by_task() -> None:
    def around(method: Any, self: Any, fence: Any, reason: str) -> None:
        for held in [each for each in self._held if each.task_id == fence.task_id]:
            method(self, held, reason)

    wrap(slots.Slots, "cancel", around)


@fault
def stays_where_it_is() -> None:
    async def never(self: Any) -> None:
        await asyncio.Event().wait()

    session.Session._leave = never  # type: ignore[method-assign]


@fault
def drops_everything_when_it_is_stopped() -> None:
    wrap(worker.Worker, "_signalled", lambda method, self: os._exit(0))


@fault
def fails_what_comes_late() -> None:
    def around(method: Any, self: Any, fences: Any) -> None:
        for fence in fences:
            failure = worker_pb2.AttemptFailure(task_id=fence.task_id, attempt=fence.attempt, code="LATE")
            self.delivered([fence])
            self.report(outbox.failure_report(fence, failure), credit=0)

    wrap(outbox.Outbox, "release", around)


@fault
def logs_without_fields() -> None:
    log_buffer._put_fields = nothing


@fault
def tells_no_last_line() -> None:
    wrap(context.Context, "close_log", lambda method, self: method(self) and 0)


@fault
def forgets_what_lines_are_stored() -> None:
    log_buffer.LogBuffer.acknowledge = nothing  # type: ignore[method-assign]


@fault
def forgets_lines_that_are_late() -> None:
    def around(method: Any, self: Any, window: int) -> Any:
        for log in [each for each in self._logs.values() if each.closed]:
            self._end(log)
        return method(self, window)

    wrap(log_buffer.LogBuffer, "restart", around)


def _acknowledge_without(field: str) -> None:
    def around(method: Any, self: Any, ack: Any) -> Any:
        ack.ClearField(field)
        return method(self, ack)

    wrap(log_buffer.LogBuffer, "acknowledge", around)


@fault
def ignores_what_is_asked_for_again() -> None:
    _acknowledge_without("again")


@fault
def goes_on_with_a_lost_log() -> None:
    _acknowledge_without("error")


@fault
def sends_lines_to_who_takes_none() -> None:
    wrap(log_buffer.LogBuffer, "restart", lambda method, self, window: method(self, window or 1024))


if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    runpy.run_path(str(EXAMPLE), run_name="__main__")
