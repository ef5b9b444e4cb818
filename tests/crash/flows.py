"""The workflows that the crash suite executes, what a run of each must come to, and the judgement of their runs.

`crash.flow` has parallel steps, a join, a map, a sleep and a child; `crash.undone` fails and undoes what it did;
`crash.code` is written as code (see orders_worker). Each task gives back twice its number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from tests.crash.history import Op

from millstream.domain.runs import EventType, PayloadKind, RunKind, RunStatus, TaskStatus
from millstream.domain.struct_wire import decode_value

WORKFLOWS = {"flow": "crash.flow", "undone": "crash.undone", "code": "crash.code"}
"""By the kind of the operation that executes them."""
_RETRY = {"max_attempts": 1000, "initial": 0.05, "maximum": 0.4}


def _step(name: str, *needs: str, n: object = 1, **fields: Any) -> dict[str, Any]:
    given = {"key": "${input.key}", "n": n}
    return {"id": name, "kind": "task", "task": "crash.step", "needs": [*needs], "input": given, "retry": _RETRY} | (
        fields
    )


CHILD = {"name": "crash.child", "steps": [_step("leaf", n="${input.n}")], "output": "${steps.leaf.output}"}
FLOW = {
    "name": "crash.flow",
    "steps": [
        _step("begin"),
        _step("left", "begin", n="${steps.begin.output + 1}"),
        _step("right", "begin", n="${steps.begin.output + 2}"),
        _step("join", "left", "right", n="${steps.left.output + steps.right.output}"),
        {
            "id": "each", "kind": "map", "needs": ["begin"], "over": "[1, 2, 3, 4]", "concurrency": 3,
            "each": {
                "kind": "task", "task": "crash.step", "input": {"key": "${input.key}", "n": "${item}"}, "retry": _RETRY,
            },
        },
        {"id": "nap", "kind": "sleep", "needs": ["begin"], "seconds": 0.1},
        {
            "id": "child", "kind": "workflow", "workflow": "crash.child", "needs": ["nap"],
            "input": {"key": "${input.key}", "n": 5},
        },
        _step("end", "join", "each", "child", n="${steps.join.output + steps.child.output}"),
    ],
    "output": {"key": "${input.key}", "each": "${steps.each.output}", "end": "${steps.end.output}"},
}  # fmt: skip
UNDONE = {
    "name": "crash.undone",
    "steps": [
        _step("book", on_failure={"compensate": "unbook"}),
        _step("refuse", "book", task="crash.refuse"),
        _step("unbook", n="${steps.book.output}"),
    ],
}
DEFINITIONS = (CHILD, FLOW, UNDONE)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run must come to: its end, its tasks, and of those the ones that fail, by the number of their step."""

    status: RunStatus
    tasks: int
    failed: frozenset[int] = frozenset()


EXPECTED = {
    "crash.child": Expected(RunStatus.COMPLETED, 1),
    "crash.flow": Expected(RunStatus.COMPLETED, 11),
    "crash.undone": Expected(RunStatus.FAILED, 3, frozenset({2})),
    "crash.code": Expected(RunStatus.COMPLETED, 6),
}


def output_of(workflow: str, given: Any) -> object:
    """What a run answers that was given this; None where it fails."""
    match workflow:
        case "crash.flow":
            return {"key": given["key"], "each": [2, 4, 6, 8], "end": 76}
        case "crash.code":
            return {"key": given["key"], "n": 28}
        case "crash.child":
            return 2 * given["n"]
    return None


_RUNS = """SELECT r.id::text, r.workflow, r.status, r.task_count, coalesce(r.parent_task::text, '') AS parent_task,
(SELECT count(*) FROM event e WHERE e.run_id = r.id AND e.type IN (10, 11, 13)) AS ends,
(SELECT e.type FROM event e WHERE e.run_id = r.id ORDER BY e.seq DESC LIMIT 1) AS last,
(SELECT array_agg(p.value) FROM run_payload p WHERE p.run_id = r.id AND p.what = $2) AS inputs,
(SELECT array_agg(p.value) FROM run_payload p WHERE p.run_id = r.id AND p.what = $3) AS outputs
FROM run r WHERE r.created_us >= $1 AND r.kind IN (3, 4)"""
_TASKS = """SELECT t.id::text, t.run_id::text, r.workflow, t.kind, t.step, t.item, t.queue, t.status,
(SELECT count(*) FROM attempt a WHERE a.task_id = t.id AND a.status = 2) AS done,
(SELECT count(*) FROM event e WHERE e.run_id = t.run_id AND e.task_id = t.id AND e.type = 3) AS created,
(SELECT count(*) FROM event e WHERE e.run_id = t.run_id AND e.task_id = t.id AND e.type = $2) AS completed,
(SELECT count(*) FROM event e WHERE e.run_id = t.run_id AND e.task_id = t.id AND e.type IN (7, 8)) AS broken
FROM task t JOIN run r ON r.id = t.run_id
WHERE r.created_us >= $1 AND r.kind IN (3, 4) AND t.id <> t.run_id"""
_JOURNALS = """SELECT r.id::text, array_agg(j.n ORDER BY j.n) FILTER (WHERE j.n > 0) AS numbers,
(SELECT array_agg(t.step ORDER BY t.step) FROM task t WHERE t.run_id = r.id AND t.step > 0) AS steps
FROM run r JOIN journal j ON j.run_id = r.id WHERE r.created_us >= $1 AND r.kind = $2 GROUP BY r.id"""
_DUE = "SELECT id::text, workflow, due_us FROM run WHERE created_us >= $1 AND due_us <> 0"


@dataclass(slots=True)
class Findings:
    """What is wrong, in words, by kind; and the ids of the runs of each key that clients sent."""

    losses: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)


async def judge(connection: asyncpg.Connection[Any], ops: Sequence[Op], since_us: int) -> Findings:
    """Judge the runs of workflows made since then: each ended as it must, each step had its effect once."""
    found = Findings()
    roots: dict[tuple[str, str], list[str]] = defaultdict(list)
    children: Counter[str] = Counter()
    for row in await connection.fetch(_RUNS, since_us, int(PayloadKind.INPUT), int(PayloadKind.OUTPUT)):
        given = _judge_run(found, row)
        found.runs.add(row["id"])
        if row["parent_task"]:
            children[row["parent_task"]] += 1
        else:
            roots[row["workflow"], str(given["key"])].append(row["id"])
    await _judge_tasks(connection, found, since_us, children)
    for row in await connection.fetch(_JOURNALS, since_us, int(RunKind.CODE)):
        if row["numbers"] != [*range(1, len(row["numbers"]) + 1)] or not {*row["steps"]} <= {*row["numbers"]}:
            found.others.append(f"run {row['id']} has commands {row['numbers']}, tasks of {row['steps']}")
    for row in await connection.fetch(_DUE, since_us):
        found.unfinished.append(f"run {row['id']} of {row['workflow']!r} is due to be looked at since {row['due_us']}")
    for op in ops:
        if op.kind in WORKFLOWS:
            _judge_op(found, op, roots.pop((WORKFLOWS[op.kind], op.orders[0]), []))
    for (workflow, key), ids in roots.items():
        found.others.append(f"{workflow} {key} runs as {ids}, and nobody sent it")
    return found


def _judge_run(found: Findings, row: asyncpg.Record) -> Any:
    name, expected = f"run {row['id']} of {row['workflow']}", EXPECTED[row["workflow"]]
    if row["status"] != expected.status:
        found.unfinished.append(f"{name} is {RunStatus(row['status']).name}, not {expected.status.name}")
    ending = EventType.RUN_COMPLETED if expected.status is RunStatus.COMPLETED else EventType.RUN_FAILED
    if (row["ends"], row["last"]) != (1, ending):
        found.others.append(f"{name} has {row['ends']} ends, and {EventType(row['last']).name} as its last event")
    if row["task_count"] != expected.tasks:
        found.duplicates.append(f"{name} has {row['task_count']} tasks, not {expected.tasks}")
    given = decode_value(row["inputs"][0]) if row["inputs"] else None
    outputs = [decode_value(each) for each in row["outputs"] or []]
    answer = output_of(row["workflow"], given)
    if len(row["inputs"] or []) != 1 or outputs != ([] if answer is None else [answer]):
        found.others.append(f"{name} was given {given} and answers {outputs}, not {answer}")
    return given


async def _judge_tasks(
    connection: asyncpg.Connection[Any], found: Findings, since_us: int, children: Counter[str]
) -> None:
    places: Counter[tuple[str, int, int]] = Counter()
    for row in await connection.fetch(_TASKS, since_us, int(EventType.TASK_COMPLETED)):
        name = f"task {row['id']} ({row['kind']}, step {row['step']}, item {row['item']} of run {row['run_id']})"
        places[row["run_id"], row["step"], row["item"]] += 1
        fails = row["step"] in EXPECTED[row["workflow"]].failed
        status = TaskStatus.FAILED if fails else TaskStatus.COMPLETED
        if row["status"] != status:
            found.unfinished.append(f"{name} is {TaskStatus(row['status']).name}, not {status.name}")
        told = (row["created"], row["completed"], row["broken"], row["done"])
        if told != ((1, 0, 1, 0) if fails else (1, 1, 0, 1)):
            found.duplicates.append(f"{name} was (created, completed, failed, done by attempts) {told}")
        if row["queue"] == "~child" and children[row["id"]] != 1:
            found.duplicates.append(f"{name} has {children[row['id']]} children")
    for (run, step, item), count in places.items():
        if count > 1:
            found.duplicates.append(f"run {run} has {count} tasks of step {step}, item {item}")


def _judge_op(found: Findings, op: Op, runs: list[str]) -> None:
    key = op.orders[0]
    if len(runs) > 1:
        found.duplicates.append(f"{op.kind} {key} ({op.outcome}) was begun {len(runs)} times: {runs}")
    elif op.stored and runs != [op.stored[0].run]:
        found.losses.append(f"{op.kind} {key} by {op.door}: told {op.stored[0].run}, stored {runs}")
    elif op.outcome == "fail":
        found.others.append(f"{op.kind} {key} was refused ({op.error}), stored {runs}")
