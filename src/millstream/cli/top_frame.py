"""What `millstream top` shows at a time: how much ends, the queues and the workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from rich.console import Group
from rich.table import Table
from rich.text import Text

from millstream.cli.output import show
from millstream.cli.queues import counted, pause_of
from millstream.sdk import Queue, Throughput, WorkerInfo

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))
_LATE_S: Final = 120
"""From so many seconds on an age is told in minutes, and so on."""

Cells: TypeAlias = Mapping[str, Callable[[Any, datetime], str]]
"""Heading -> what stands under it, at a time; headings with a space before are of numbers."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What was found at a time."""

    at: datetime
    throughput: Throughput
    queues: Sequence[Queue]
    """The busiest first."""
    workers: Sequence[WorkerInfo]
    """Those that are connected; those that drain at the end."""
    more_queues: bool = False
    """There are others, of which nothing is known here."""
    more_workers: bool = False
    fault: str = ""
    """Why nothing newer is known."""


def busy(queue: Queue) -> tuple[int, str]:
    """Sorts the busiest queue first."""
    return -(queue.running + queue.ready + queue.in_line), queue.queue


def draw(frame: Frame, target: str, limit: int) -> Group:
    """A frame as it is shown, with at most `limit` queues and as many workers."""
    head = Text.assemble(("millstream top", "bold"), f"  {target}  {show(frame.at)}")
    if frame.fault:
        head.append(f"  {frame.fault}", "bold red")
    slots = f"{sum(each.slots_used for each in frame.workers)} of {sum(each.slots for each in frame.workers)} slots"
    return Group(
        head,
        Text(),
        _ends(frame.throughput),
        Text(),
        _table(_QUEUES, frame.queues, limit, frame, "queues", frame.more_queues),
        Text(),
        _table(_WORKERS, frame.workers, limit, frame, "workers", frame.more_workers),
        *([Text(f"{slots} used", "dim")] if frame.workers else []),
    )


def _ends(ends: Throughput) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"in {ends.window_s} s")
    for heading in ("completed", "a second", "failed", "a second", "retried", "cancelled"):
        table.add_column(heading, justify="right")
    for name, done, failed, retried, cancelled in (
        ("tasks", ends.tasks_completed, ends.tasks_failed, str(ends.tasks_retried), ends.tasks_cancelled),
        ("runs", ends.runs_completed, ends.runs_failed, "", ends.runs_cancelled),
    ):
        bad = "red" if failed else ""
        table.add_row(
            name, str(done), f"{done / ends.window_s:.2f}", Text(str(failed), bad),
            Text(f"{failed / ends.window_s:.2f}", bad), retried, str(cancelled),
        )  # fmt: skip
    return table


def _table(
    cells: Cells, items: Sequence[Queue] | Sequence[WorkerInfo], limit: int, frame: Frame, title: str, more: bool
) -> Group:
    if not items:
        return Group(Text(f"no {title}", "dim"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in cells:
        table.add_column(heading.strip(), justify="right" if heading[0] == " " else "left", no_wrap=True)
    for item in items[:limit]:
        table.add_row(*(Text(cell(item, frame.at)) for cell in cells.values()), style=_style(item))
    left = len(items) - limit
    if left <= 0 and not more:
        return Group(table)
    known = f"{left} more" if left > 0 else "more"
    return Group(table, Text(f"... {known}{' and others' * (more and left > 0)}: millstream {title} list", "dim"))


def _style(item: Queue | WorkerInfo) -> str:
    held = item.paused if isinstance(item, Queue) else item.status != "ONLINE"
    return "yellow" if held else ""


def _age(since: datetime | None, at: datetime) -> str:
    """How long ago it was. The service's clock may be ahead of this one."""
    if since is None:
        return ""
    seconds = max((at - since).total_seconds(), 0)
    for size, unit in _UNITS:
        if seconds >= _LATE_S * size / 60:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


_QUEUES: Final[Cells] = {
    "queue": lambda q, _: q.queue,
    " ready": lambda q, _: counted(q.ready),
    " in line": lambda q, _: counted(q.in_line),
    " scheduled": lambda q, _: counted(q.scheduled),
    " running": lambda q, _: counted(q.running),
    " oldest ready": lambda q, at: _age(q.oldest_ready_at, at),
    "paused": lambda q, _: pause_of(q),
}
_WORKERS: Final[Cells] = {
    "worker": lambda w, _: w.name or w.worker_id,
    "status": lambda w, _: w.status,
    " slots": lambda w, _: f"{w.slots_used}/{w.slots}",
    " heard of": lambda w, at: f"{_age(w.last_heartbeat_at, at)} ago",
    "server": lambda w, _: w.server,
    "queues": lambda w, _: show(w.queues),
}
