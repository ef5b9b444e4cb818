"""`millstream tasks`."""

from datetime import datetime
from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, ApiKey, Json, Limit, Target, call
from millstream.cli.dead_letters import dead, drop, retry
from millstream.cli.dead_letters import fault as fault
from millstream.cli.given import aware, json_value, labels_of
from millstream.cli.output import print_fields, print_json, print_list
from millstream.cli.task_logs import task_logs
from millstream.sdk import Client, Concurrency, NewTask, RateLimit, RetryPolicy, Task, Timeouts

app = typer.Typer(help="Create, read, cancel and retry tasks.", no_args_is_help=True)
app.command()(dead)
app.command()(retry)
app.command()(drop)
app.command("logs")(task_logs)

TaskId = Annotated[str, typer.Argument(help="Id of the task.", show_default=False)]


COLUMNS = {
    "id": lambda t: t.task_id,
    "kind": lambda t: t.kind,
    "status": lambda t: t.status,
    "attempt": lambda t: f"{t.attempt}/{t.max_attempts}",
    "created": lambda t: t.created_at,
    "worker": lambda t: t.worker,
    "error": lambda t: fault(t.error),
}
_RETRIED = {
    "id": lambda s: s.task.task_id,
    "kind": lambda s: s.task.kind,
    "queue": lambda s: s.task.queue,
    "status": lambda s: s.task.status,
    "attempt": lambda s: f"{s.task.attempt}/{s.task.max_attempts}",
    "failing since": lambda s: s.since,
    "next attempt": lambda s: s.next_attempt_at,
    "error": lambda s: fault(s.task.error),
}
_WAITING = {
    "queue": lambda s: s.task.queue,
    "kind": lambda s: s.task.kind,
    "waiting": lambda s: s.waiting,
    "since": lambda s: s.since,
    "served": lambda s: "yes" if s.served else "no worker",
    "oldest": lambda s: s.task.task_id,
}
ATTEMPTS = {
    "attempt": lambda a: a.attempt,
    "status": lambda a: a.status,
    "started": lambda a: a.started_at,
    "took ms": lambda a: round(a.duration_ms, 1),
    "worker": lambda a: a.worker,
    "error": lambda a: fault(a.error),
}


@app.command()
def create(
    kind: Annotated[str, typer.Argument(help="What it does: a kind that a worker serves.", show_default=False)],
    given: Annotated[
        str, typer.Argument(metavar="[INPUT]", help="JSON, @file, or - for stdin.", show_default=False)
    ] = "null",
    queue: Annotated[str, typer.Option(help="Its queue.")] = "default",
    priority: Annotated[int, typer.Option(min=-100, max=100, help="The higher the sooner.")] = 0,
    delay: Annotated[float, typer.Option(min=0, help="Not before so many seconds from now.")] = 0.0,
    run_at: Annotated[datetime | None, typer.Option(help="Not before this time.", show_default=False)] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeat for more.", show_default=False)] = None,
    key: Annotated[str, typer.Option(help="Idempotency key of this call.", show_default=False)] = "",
    deduplication_key: Annotated[
        str, typer.Option(help="While a task of this kind and key stands, it is the answer.", show_default=False)
    ] = "",
    concurrency: Annotated[
        str, typer.Option(help="KEY=N: at most N tasks with this key run at once.", show_default=False)
    ] = "",
    rate: Annotated[
        str, typer.Option(help="KEY=N/SECONDS: at most N tasks with this key start in a period.", show_default=False)
    ] = "",
    deduplication_ttl: Annotated[
        float | None, typer.Option(min=1, help="Seconds that key holds. Default: 24 h.", show_default=False)
    ] = None,
    run_timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds that it may take in all.", show_default=False)
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="Default: 3.", show_default=False)] = None,
    initial_interval: Annotated[
        float | None, typer.Option(min=0, help="Seconds before the second attempt. Default: 1.", show_default=False)
    ] = None,
    factor: Annotated[
        float | None, typer.Option(min=1, help="Growth of that wait. Default: 2.", show_default=False)
    ] = None,
    maximum_interval: Annotated[
        float | None, typer.Option(min=0, help="The longest wait, seconds. Default: 60.", show_default=False)
    ] = None,
    jitter: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share that is random. Default: 0.1.", show_default=False)
    ] = None,
    non_retryable: Annotated[
        list[str] | None, typer.Option(help="A code that is final at once; repeatable.", show_default=False)
    ] = None,
    schedule_to_start: Annotated[
        float | None, typer.Option(min=0, help="Seconds that it may wait for a worker.", show_default=False)
    ] = None,
    start_to_close: Annotated[
        float | None, typer.Option(min=0, help="Seconds of an attempt. Default: 300.", show_default=False)
    ] = None,
    heartbeat: Annotated[
        float | None, typer.Option(min=0, help="Seconds between two heartbeats.", show_default=False)
    ] = None,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Create a standalone task."""
    new = NewTask(
        kind,
        json_value(given, "INPUT"),
        queue,
        priority,
        run_at=aware(run_at),
        delay=delay or None,
        retry=RetryPolicy(
            max_attempts=max_attempts,
            initial_interval=initial_interval,
            factor=factor,
            maximum_interval=maximum_interval,
            jitter=jitter,
            non_retryable_codes=tuple(non_retryable or ()),
        ),
        timeouts=Timeouts(schedule_to_start=schedule_to_start, start_to_close=start_to_close, heartbeat=heartbeat),
        run_timeout=run_timeout,
        labels=labels_of(label),
        idempotency_key=key,
        deduplication_key=deduplication_key,
        deduplication_ttl=deduplication_ttl,
        concurrency=_concurrency(concurrency),
        rate_limit=_rate(rate),
    )
    _show(call(target, api_key, lambda client: client.tasks.create_one(new)), as_json)


def _concurrency(given: str) -> Concurrency | None:
    key, _, limit = given.rpartition("=")
    if given and not (key and limit.isdecimal()):
        raise typer.BadParameter("must be KEY=N, such as shop=3", param_hint="--concurrency")
    return Concurrency(key, int(limit)) if given else None


def _rate(given: str) -> RateLimit | None:
    key, _, bound = given.rpartition("=")
    limit, _, period = bound.partition("/")
    try:
        return RateLimit(key, int(limit), float(period)) if given else None
    except ValueError:
        raise typer.BadParameter("must be KEY=N/SECONDS, such as mail=10/60", param_hint="--rate") from None


@app.command("list")
def list_(
    status: Annotated[str, typer.Option(help="In this status, such as FAILED.")] = "",
    kind: Annotated[str, typer.Option(help="Of this kind.")] = "",
    queue: Annotated[str, typer.Option(help="In this queue.")] = "",
    run: Annotated[str, typer.Option(help="Of this run.")] = "",
    agent: Annotated[str, typer.Option(help="Of this agent.")] = "",
    worker: Annotated[str, typer.Option(help="That the worker with this name has, or had.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeat for more.", show_default=False)] = None,
    oldest: Annotated[bool, typer.Option("--oldest", help="The oldest first, as always of one run.")] = False,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List tasks, newest first; those of one run in the order they were made."""
    labels = labels_of(label)

    narrowed = bool(kind or queue or agent or worker or labels)

    async def work(client: Client) -> None:
        try:
            listing = (
                client.runs.tasks(run, status=status)
                if run and not narrowed
                else client.tasks.list(
                    status=status, kind=kind, queue=queue, run_id=run, agent=agent, worker=worker, labels=labels,
                    oldest_first=oldest or bool(run),
                )
            )  # fmt: skip
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--status") from error
        await print_list(listing, COLUMNS, as_json=as_json, limit=limit, title="tasks")

    call(target, api_key, work)


@app.command()
def stuck(
    waiting: Annotated[
        bool, typer.Option("--waiting", help="What waits for a worker, by queue and kind, in place of what is retried.")
    ] = False,
    unserved: Annotated[
        bool, typer.Option("--unserved", help="Of that, only where no worker is connected that takes it.")
    ] = False,
    kind: Annotated[str, typer.Option(help="Of this kind.")] = "",
    queue: Annotated[str, typer.Option(help="In this queue.")] = "",
    for_at_least: Annotated[float, typer.Option(min=0, help="Stuck for so many seconds.")] = 0,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List what is stuck: tasks that failed and are tried again, or what waits for a worker."""

    async def work(client: Client) -> None:
        listing = client.tasks.stuck(
            waiting=waiting or unserved, unserved=unserved, kind=kind, queue=queue, for_at_least=for_at_least
        )
        columns = _WAITING if waiting or unserved else _RETRIED
        await print_list(listing, columns, as_json=as_json, limit=limit, title="stuck tasks")

    call(target, api_key, work)


@app.command()
def get(task_id: TaskId, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show a task with its input and output."""
    _show(call(target, api_key, lambda client: client.tasks.get(task_id)), as_json)


@app.command()
def cancel(
    task_id: TaskId,
    reason: Annotated[str, typer.Option(help="Why, for the run's events.")] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Cancel a task: one that runs is told, and has 10 s to end."""
    _show(call(target, api_key, lambda client: client.tasks.cancel(task_id, reason)), as_json)


@app.command()
def attempts(
    task_id: TaskId,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the attempts of a task."""

    async def work(client: Client) -> None:
        listing = client.tasks.attempts(task_id)
        await print_list(listing, ATTEMPTS, as_json=as_json, limit=limit, title="attempts")

    call(target, api_key, work)


def _progress(task: Task) -> str:
    """How far it is, "" where nothing was reported."""
    return f"{task.progress:.0%} {task.progress_message}" if task.progress or task.progress_message else ""


def _show(task: Task, as_json: bool) -> None:
    if as_json:
        print_json(task)
        return
    print_fields(
        {
            "id": task.task_id,
            "run": task.run_id,
            "kind": task.kind,
            "queue": task.queue,
            "status": f"{task.status}, held while its run is paused" if task.held else task.status,
            "waits for": task.waiting_for,
            "attempt": f"{task.attempt} of {task.max_attempts}",
            "priority": task.priority or None,
            "created": task.created_at,
            "runs at": task.run_at,
            "started": task.started_at,
            "finished": task.finished_at,
            "worker": task.worker,
            "progress": _progress(task),
            "error": fault(task.error),
            "artifacts": task.artifact_ids,
            "labels": task.labels,
            "input": task.input,
            "output": task.output,
        }
    )
