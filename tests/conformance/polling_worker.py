"""A worker without a stream: it polls, and reports by unary calls. The argument names what it does wrong, if anything:
what the kit must find."""

import asyncio
import itertools
import os
import random
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value
from google.protobuf.unknown_fields import UnknownFieldSet

from millstream.v1 import worker_pb2
from millstream.v1 import worker_service_pb2 as wire
from millstream.v1.worker_service_pb2_grpc import WorkerServiceStub

# It is started as a program, too.
sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.conformance.polling_logs import AttemptLog, PollingLogs

AGENT = "agent:conformance-publisher"
MOST_PAUSE_S = 2.0
LAST_POLL_S = 1.0
Fence = tuple[str, int]


class TaskFailedError(Exception):
    """A task failed, as it says."""

    def __init__(self, value: dict[str, Any]) -> None:
        super().__init__(value.get("message", ""))
        self.value = value


class PollingWorker:
    """Polls whenever it has room, and reports each task as it ends."""

    def __init__(self) -> None:
        self.worker_id = str(uuid.uuid4())
        self.kinds = os.environ["MILLSTREAM_CONFORMANCE_KINDS"].split(",")
        self.kinds += os.environ["MILLSTREAM_CONFORMANCE_OPTIONAL_KINDS"].split(",")
        self.slots = int(os.environ["MILLSTREAM_CONFORMANCE_SLOTS"])
        self.lease_s = float(os.environ["MILLSTREAM_CONFORMANCE_LEASE_S"])
        self.metadata: tuple[tuple[str, str], ...] = (
            ("authorization", f"Bearer {os.environ.get('MILLSTREAM_API_KEY', '')}"),
        )
        self.wait_s = 20.0
        self.held: dict[Fence, tuple[worker_pb2.Lease, asyncio.Task[None]]] = {}
        self.begun: Counter[Fence] = Counter()
        self.freed = asyncio.Event()
        self.stopping = asyncio.Event()
        self.stub: Any = None
        self.logs = PollingLogs(lambda: self.stub.StreamLogs(metadata=self.metadata), self.pause)

    async def run(self) -> None:
        """Works until SIGTERM."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        async with grpc.aio.insecure_channel(os.environ["MILLSTREAM_TARGET"]) as channel:
            self.stub = WorkerServiceStub(channel)
            beating = asyncio.create_task(self.beat())
            polling = asyncio.create_task(self.poll())
            logging = asyncio.create_task(self.logs.run())
            await self.stopping.wait()
            await self.stop(polling)
            beating.cancel()
            logging.cancel()

    async def stop(self, polling: "asyncio.Task[None]") -> None:
        """Asks for nothing more, and finishes what runs."""
        # What a poll has brought is this worker's already, though it may not have read it yet.
        await asyncio.wait({polling}, timeout=LAST_POLL_S)
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        await asyncio.gather(*(running for _, running in self.held.values()))

    def room(self) -> int:
        """Leases it has room for."""
        return self.slots - len(self.held)

    async def poll(self) -> None:
        """Asks for as much as there is room for, again and again."""
        tries = itertools.count()
        while not self.stopping.is_set():
            self.freed.clear()
            if self.room() <= 0:
                await self.freed.wait()
                continue
            request = wire.PollRequest(
                worker_id=self.worker_id, name="polling", kinds=self.kinds, max_tasks=self.room(), wait=self.wait_s
            )
            try:
                answer = await self.stub.Poll(request, metadata=self.metadata)
            except grpc.aio.AioRpcError:
                await self.pause(next(tries))
                continue
            tries = itertools.count()
            self.check(answer)
            for lease in answer.leases:
                self.begin(lease)

    async def pause(self, tries: int) -> None:
        """Rests before it tries again, longer each time."""
        await asyncio.sleep(min(0.05 * 2**tries, MOST_PAUSE_S) * random.uniform(0.8, 1.0))

    def check(self, answer: Any) -> None:
        """Looks at nothing that it does not know."""

    def begin(self, lease: worker_pb2.Lease) -> None:
        """Runs a task."""
        self.held[lease.task_id, lease.attempt] = (lease, asyncio.create_task(self.work(lease)))

    async def work(self, lease: worker_pb2.Lease) -> None:
        """Does a task, and reports it."""
        fence = (lease.task_id, lease.attempt)
        try:
            done = worker_pb2.Completion(task_id=lease.task_id, attempt=lease.attempt)
            json_format.ParseDict(await self.do(lease, done), done.output)
            self.tell_last_line(done)
            await self.send(self.stub.Complete, wire.CompleteRequest(completions=[done]))
        except TaskFailedError as error:
            await self.fail(lease, error.value)
        except asyncio.CancelledError:
            if fence in self.held:
                await self.fail(lease, {"code": "CANCELLED", "message": "cancelled", "retryable": False})
        finally:
            self.held.pop(fence, None)
            self.freed.set()

    async def fail(self, lease: worker_pb2.Lease, value: dict[str, Any]) -> None:
        """Reports a failure."""
        failure = worker_pb2.AttemptFailure(task_id=lease.task_id, attempt=lease.attempt, code=value["code"])
        failure.message = value["message"]
        self.tell_last_line(failure)
        if "retryable" in value:
            failure.retryable = value["retryable"]
        if "retry_after_ms" in value:
            failure.retry_after.FromMilliseconds(int(value["retry_after_ms"]))
        await self.send(self.stub.Fail, wire.FailRequest(failures=[failure]))

    def tell_last_line(self, report: worker_pb2.Completion | worker_pb2.AttemptFailure) -> None:
        """Names the last line of an attempt that logged."""
        if last := self.logs.last((report.task_id, report.attempt)):
            report.log_offset = last

    async def send(self, call: Callable[..., Any], request: Any) -> None:
        """Sends a report until it is answered, whatever the answer is."""
        for tries in itertools.count():
            try:
                self.check(await call(request, metadata=self.metadata))
            except grpc.aio.AioRpcError:
                await self.pause(tries)
            else:
                return

    async def do(self, lease: worker_pb2.Lease, done: worker_pb2.Completion) -> Any:
        """What a kind does. Raises TaskFailedError."""
        value: Any = json_format.MessageToDict(lease.input) if lease.HasField("input") else None
        match lease.kind:
            case "conformance.echo":
                return value
            case "conformance.fail":
                raise TaskFailedError(value)
            case "conformance.sleep":
                self.begun[lease.task_id, lease.attempt] += 1
                await asyncio.sleep(value["ms"] / 1000)
                return {"runs": self.begun[lease.task_id, lease.attempt]}
            case "conformance.hold":
                return await asyncio.Event().wait()
            case "conformance.progress":
                await self.tell(lease, value["fraction"], value["message"])
                return None
            case "conformance.log":
                for line in value["lines"]:
                    self.logs.write((lease.task_id, lease.attempt), line)
                if value.get("hold"):
                    await asyncio.Event().wait()
                return {"lines": len(value["lines"])}
            case "conformance.token":
                return {"idempotency_token": lease.idempotency_token}
            case kind if kind == AGENT:
                self.publish(lease, done)
                return None
        raise TaskFailedError({"code": "UNKNOWN_KIND", "message": lease.kind, "retryable": True})

    def publish(self, lease: worker_pb2.Lease, done: worker_pb2.Completion) -> None:
        """Publishes each item that the agent is given."""
        for item in json_format.MessageToDict(lease.artifacts[0].payload).get("items", []):
            made = done.artifacts.add(type="ConformanceOutput")
            made.payload.fields["item"].CopyFrom(json_format.ParseDict(item, Value()))

    async def tell(self, lease: worker_pb2.Lease, fraction: float, message: str) -> None:
        """Reports progress."""
        told = worker_pb2.TaskProgress(task_id=lease.task_id, attempt=lease.attempt, fraction=fraction, message=message)
        await self.send(self.stub.ReportProgress, wire.ReportProgressRequest(progress=[told]))

    async def beat(self) -> None:
        """Renews what it holds, and gives up what it is told to."""
        while True:
            await asyncio.sleep(self.beat_s())
            refs = [worker_pb2.LeaseRef(task_id=task_id, attempt=attempt) for task_id, attempt in self.held]
            if not refs:
                continue
            try:
                answer = await self.stub.Heartbeat(wire.HeartbeatRequest(leases=refs), metadata=self.metadata)
            except grpc.aio.AioRpcError:
                continue
            self.check(answer)
            for result in answer.results:
                self.hear((result.task_id, result.attempt), result.HasField("error"), result.cancel_requested)

    def beat_s(self) -> float:
        """How often signs of life are due: every third of the shortest time."""
        asked = [lease.heartbeat_timeout.ToMilliseconds() / 1000 for lease, _ in self.held.values()]
        return min([self.lease_s / 3, *(each / 3 for each in asked if each)], default=self.lease_s / 3)

    def hear(self, fence: Fence, lost: bool, cancelled: bool) -> None:
        """What became of a renewal."""
        if fence in self.held and (lost or cancelled):
            _, running = self.held[fence]
            if lost:
                # It is somebody else's: nothing is reported.
                del self.held[fence]
            running.cancel()


FAULTS: dict[str, Callable[[PollingWorker], None]] = {}


def fault(install: Callable[[PollingWorker], None]) -> Callable[[PollingWorker], None]:
    """Registers what makes a worker a faulty one, by its name."""
    FAULTS[install.__name__] = install
    return install


@fault
def shows_no_token(worker: PollingWorker) -> None:
    worker.metadata = ()


@fault
def breaks_a_field_rule(worker: PollingWorker) -> None:
    worker.wait_s = 3600.0


@fault
def names_too_few_kinds(worker: PollingWorker) -> None:
    worker.kinds.remove("conformance.echo")


@fault
def is_another_one_each_time(worker: PollingWorker) -> None:
    def room() -> int:
        worker.worker_id = str(uuid.uuid4())
        return worker.slots - len(worker.held)

    worker.room = room  # type: ignore[method-assign]


@fault
def does_not_wait(worker: PollingWorker) -> None:
    worker.wait_s = 0.05


@fault
def polls_once(worker: PollingWorker) -> None:
    def check(answer: Any) -> None:
        if isinstance(answer, wire.PollResponse) and not answer.leases:
            worker.slots = 0

    worker.check = check  # type: ignore[method-assign]


@fault
def asks_for_too_much(worker: PollingWorker) -> None:
    worker.room = lambda: worker.slots  # type: ignore[method-assign]


@fault
def runs_one_after_the_other(worker: PollingWorker) -> None:
    turn, do = asyncio.Lock(), worker.do

    async def in_turn(lease: worker_pb2.Lease, done: worker_pb2.Completion) -> Any:
        async with turn:
            return await do(lease, done)

    worker.do = in_turn  # type: ignore[method-assign]


@fault
def keeps_its_slots(worker: PollingWorker) -> None:
    begin = worker.begin
    taken: list[str] = []

    def kept(lease: worker_pb2.Lease) -> None:
        taken.append(lease.task_id)
        begin(lease)

    worker.room = lambda: worker.slots - len(taken)  # type: ignore[method-assign]
    worker.begin = kept  # type: ignore[method-assign]


@fault
def makes_up_tokens(worker: PollingWorker) -> None:
    begin = worker.begin

    def renamed(lease: worker_pb2.Lease) -> None:
        lease.idempotency_token = "mine"
        begin(lease)

    worker.begin = renamed  # type: ignore[method-assign]


@fault
def mistakes_nothing_for_an_object(worker: PollingWorker) -> None:
    do = worker.do

    async def changed(lease: worker_pb2.Lease, done: worker_pb2.Completion) -> Any:
        return await do(lease, done) or {}

    worker.do = changed  # type: ignore[method-assign]


@fault
def knows_only_first_attempts(worker: PollingWorker) -> None:
    begin = worker.begin

    def first(lease: worker_pb2.Lease) -> None:
        lease.attempt = 1
        begin(lease)

    worker.begin = first  # type: ignore[method-assign]


@fault
def gives_unknown_kinds_up_for_good(worker: PollingWorker) -> None:
    fail = worker.fail

    async def final(lease: worker_pb2.Lease, value: dict[str, Any]) -> None:
        await fail(lease, value | {"retryable": False})

    worker.fail = final  # type: ignore[method-assign]


@fault
def forgets_when_to_try_again(worker: PollingWorker) -> None:
    fail = worker.fail

    async def bare(lease: worker_pb2.Lease, value: dict[str, Any]) -> None:
        await fail(lease, {name: each for name, each in value.items() if name != "retry_after_ms"})

    worker.fail = bare  # type: ignore[method-assign]


@fault
def publishes_nothing(worker: PollingWorker) -> None:
    worker.publish = lambda lease, done: None  # type: ignore[method-assign]


@fault
def tells_no_progress(worker: PollingWorker) -> None:
    async def silent(lease: worker_pb2.Lease, fraction: float, message: str) -> None:
        pass

    worker.tell = silent  # type: ignore[method-assign]


@fault
def names_what_it_was_never_given(worker: PollingWorker) -> None:
    begin = worker.begin

    def other(lease: worker_pb2.Lease) -> None:
        lease.task_id = str(uuid.uuid4())
        begin(lease)

    worker.begin = other  # type: ignore[method-assign]


@fault
def renews_nothing(worker: PollingWorker) -> None:
    worker.lease_s = 300.0


@fault
def has_no_heart(worker: PollingWorker) -> None:
    worker.beat_s = lambda: 2.5  # type: ignore[method-assign]


@fault
def cannot_be_cancelled(worker: PollingWorker) -> None:
    worker.hear = lambda fence, lost, cancelled: None  # type: ignore[method-assign]


@fault
def reports_what_is_lost(worker: PollingWorker) -> None:
    hear = worker.hear
    worker.hear = lambda fence, lost, cancelled: hear(fence, False, lost or cancelled)  # type: ignore[method-assign]


@fault
def tries_without_rest(worker: PollingWorker) -> None:
    async def short(tries: int) -> None:
        await asyncio.sleep(0.5 / (1 + tries))

    worker.pause = short  # type: ignore[method-assign]


@fault
def reports_only_once(worker: PollingWorker) -> None:
    async def once(call: Callable[..., Any], request: Any) -> None:
        try:
            await call(request, metadata=worker.metadata)
        except grpc.aio.AioRpcError:
            return

    worker.send = once  # type: ignore[method-assign]


@fault
def repeats_what_is_refused(worker: PollingWorker) -> None:
    send = worker.send

    async def again(call: Callable[..., Any], request: Any) -> None:
        await send(call, request)
        await send(call, request)

    worker.send = again  # type: ignore[method-assign]


@fault
def falls_over_unknown_fields(worker: PollingWorker) -> None:
    def check(answer: Any) -> None:
        if len(UnknownFieldSet(answer)):
            os._exit(5)

    worker.check = check  # type: ignore[method-assign]


@fault
def drops_everything_when_it_is_stopped(worker: PollingWorker) -> None:
    async def stop(polling: "asyncio.Task[None]") -> None:
        os._exit(0)

    worker.stop = stop  # type: ignore[method-assign]


@fault
def exits_with_an_error(worker: PollingWorker) -> None:
    stop = worker.stop

    async def failing(polling: "asyncio.Task[None]") -> None:
        await stop(polling)
        os._exit(3)

    worker.stop = failing  # type: ignore[method-assign]


@fault
def logs_without_fields(worker: PollingWorker) -> None:
    write = worker.logs.write
    worker.logs.write = lambda fence, line: write(fence, line | {"fields": {}})  # type: ignore[method-assign]


@fault
def tells_no_last_line(worker: PollingWorker) -> None:
    worker.tell_last_line = lambda report: None  # type: ignore[method-assign]


def _acknowledge(worker: PollingWorker, around: Callable[[AttemptLog, Any], None]) -> None:
    acknowledge = worker.logs.acknowledge

    def changed(log: AttemptLog, ack: Any) -> None:
        around(log, ack)
        acknowledge(log, ack)

    worker.logs.acknowledge = changed  # type: ignore[method-assign]


@fault
def forgets_what_lines_are_stored(worker: PollingWorker) -> None:
    _acknowledge(worker, lambda log, ack: setattr(ack, "offset", 0))


@fault
def ignores_what_is_asked_for_again(worker: PollingWorker) -> None:
    _acknowledge(worker, lambda log, ack: ack.ClearField("again"))


@fault
def goes_on_with_a_lost_log(worker: PollingWorker) -> None:
    _acknowledge(worker, lambda log, ack: ack.ClearField("error"))


async def main() -> None:
    """Runs it."""
    worker = PollingWorker()
    for name in sys.argv[1:]:
        FAULTS[name](worker)
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
