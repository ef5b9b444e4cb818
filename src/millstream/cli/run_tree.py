"""A run with its tasks and what it began, as a tree that grows with what is told of it."""

from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from rich.text import Text
from rich.tree import Tree

from millstream.cli.output import show
from millstream.sdk import RunEvent, RunHappening

SHOWN_MOST: Final = 30
"""Tasks of a run that are shown: those under way, and the latest of the others."""
STREAMED_CHARS: Final = 100
_BAR: Final = 20
_TRIES: Final = 8
"""Of a task that begins runs, as many are known by their ids."""
_STATUS: Final = {
    "RUN_CREATED": "RUNNING", "RUN_REOPENED": "RUNNING", "RUN_COMPLETED": "COMPLETED", "RUN_FAILED": "FAILED",
    "RUN_CANCELLING": "CANCELLING", "RUN_CANCELLED": "CANCELLED", "RUN_PAUSED": "PAUSED", "RUN_RESUMED": "RUNNING",
    "TASK_CREATED": "PENDING", "TASK_READY": "PENDING", "TASK_STARTED": "RUNNING", "TASK_RELEASED": "PENDING",
    "TASK_RETRY": "RETRYING", "TASK_COMPLETED": "COMPLETED", "TASK_FAILED": "FAILED", "TASK_CANCELLED": "CANCELLED",
    "TASK_CANCELLING": "CANCELLING",
}  # fmt: skip
_STYLES: Final = {"COMPLETED": "green", "FAILED": "red", "CANCELLED": "yellow", "RUNNING": "cyan", "RETRYING": "yellow"}
_ENDED: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED"})


@dataclass(slots=True)
class TaskLine:
    """A task as it is shown."""

    kind: str
    status: str = "PENDING"
    attempt: int = 0
    fraction: float = 0.0
    message: str = ""
    streamed: str = ""
    begun: list[str] = field(default_factory=list)
    """Runs that it began."""


@dataclass(slots=True)
class RunLine:
    """A run as it is shown."""

    run_id: str
    status: str = "RUNNING"
    error: str = ""
    tasks: dict[str, TaskLine] = field(default_factory=dict)


class RunTree:
    """What is known of a run and of those that it began."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.runs: dict[str, RunLine] = {root: RunLine(root)}
        self._parents: dict[str, TaskLine] = {}

    def add(self, happening: RunHappening) -> None:
        """Something happened, or was streamed."""
        if not happening.run_id:
            return
        run = self._run(happening.run_id)
        if happening.event is not None:
            self._event(run, happening.event)
        elif happening.streamed is not None and happening.streamed.task_id in run.tasks:
            line = run.tasks[happening.streamed.task_id]
            value = happening.streamed.value
            line.streamed = (line.streamed + (value if isinstance(value, str) else show(value)))[-STREAMED_CHARS:]

    def _run(self, run_id: str) -> RunLine:
        run = self.runs.get(run_id)
        if run is None:
            run = self.runs[run_id] = RunLine(run_id)
            if run_id in self._parents:
                self._parents[run_id].begun.append(run_id)
        return run

    def _event(self, run: RunLine, event: RunEvent) -> None:
        status = _STATUS.get(event.type, "")
        if not event.task_id:
            run.status = status or ("RUNNING" if event.type == "RETRY_REQUESTED" else run.status)
            run.error = str(event.data.get("message") or "") if event.type == "RUN_FAILED" else run.error
            return
        task = run.tasks.get(event.task_id)
        if task is None:
            task = run.tasks[event.task_id] = TaskLine(str(event.data.get("kind", "")))
            if event.data.get("queue") == "~child":
                made = UUID(event.task_id).int
                self._parents |= {str(UUID(int=made ^ n)): task for n in range(1, _TRIES + 1)}
        task.status = status or ("PENDING" if event.type == "RETRY_REQUESTED" else task.status)
        task.attempt = event.attempt or task.attempt
        if event.type == "TASK_STARTED":
            task.fraction, task.message, task.streamed = 0.0, "", ""
        elif event.type == "TASK_PROGRESS":
            task.fraction = float(str(event.data.get("fraction") or 0))
            task.message = str(event.data.get("message") or "")
        elif event.type in ("TASK_RETRY", "TASK_FAILED"):
            task.message = f"{event.data.get('code', '')}: {event.data.get('message', '')}"

    def show(self) -> Tree:
        """As it stands."""
        return self._branch(self.runs[self.root])

    def _branch(self, run: RunLine) -> Tree:
        ended = sum(task.status in _ENDED for task in run.tasks.values())
        share = sum(_share(task) for task in run.tasks.values()) / (len(run.tasks) or 1)
        head = Text.assemble(f"run {run.run_id}  ", (run.status, _STYLES.get(run.status, "")), "  ")
        head.append_text(_bar(1.0 if run.status == "COMPLETED" else share))
        head.append(f"  {ended} of {len(run.tasks)} tasks")
        if run.error:
            head.append(f"  {run.error}", "red")
        tree = Tree(head)
        shown = self._shown(run)
        for task in shown:
            branch = tree.add(_line(task))
            for run_id in task.begun:
                branch.add(self._branch(self.runs[run_id]))
        if len(shown) < len(run.tasks):
            tree.add(Text(f"... {len(run.tasks) - len(shown)} more", "dim"))
        return tree

    def _shown(self, run: RunLine) -> list[TaskLine]:
        tasks = [*run.tasks.values()]
        if len(tasks) <= SHOWN_MOST:
            return tasks
        under_way = [n for n, task in enumerate(tasks) if task.status not in _ENDED][:SHOWN_MOST]
        others = [n for n, task in enumerate(tasks) if task.status in _ENDED][len(under_way) - SHOWN_MOST :]
        room = SHOWN_MOST - len(under_way)
        return [tasks[n] for n in sorted([*under_way, *(others[-room:] if room else [])])]


def _share(task: TaskLine) -> float:
    return 1.0 if task.status in _ENDED else task.fraction if task.status == "RUNNING" else 0.0


def _bar(share: float) -> Text:
    full = round(share * _BAR)
    return Text.assemble(("━" * full, "cyan"), ("━" * (_BAR - full), "bright_black"), f" {share:4.0%}")


def _line(task: TaskLine) -> Text:
    line = Text.assemble(f"{task.kind}  ", (task.status, _STYLES.get(task.status, "")))
    if task.attempt > 1:
        line.append(f", attempt {task.attempt}")
    if task.status == "RUNNING" and task.fraction:
        line.append("  ")
        line.append_text(_bar(task.fraction))
    if task.message and task.status not in ("COMPLETED", "CANCELLED"):
        line.append(f"  {task.message}", "red" if task.status == "FAILED" else "")
    if task.streamed and task.status == "RUNNING":
        line.append(f"  {task.streamed}", "dim")
    return line
