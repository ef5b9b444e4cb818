"""What the locked path needs of a batch: read and locked, as far as no other server holds it."""

from collections.abc import Sequence

from millstream.application.engine.commands import Command
from millstream.application.engine.deciding import Keys
from millstream.application.engine.leasing import LeaseReady
from millstream.application.engine.queue import Item
from millstream.application.ports import Transaction
from millstream.domain.batch import Batch
from millstream.domain.runs import RunKind


async def load_locked(
    transaction: Transaction, batch: Batch, commands: Sequence[Command], waits: bool
) -> tuple[Keys, set[str]]:
    """Read and lock what the commands need: keys, then bounds of agents and lines, runs, tasks and buffers. The keys,
    and the runs and buffers that another server holds, for which only a transaction that `waits` waits."""
    claims = [key for command in commands for key in (command.key, command.business_key) if key is not None]
    keys = await transaction.keys(claims) if claims else {}
    gates = {gate for command in commands if isinstance(command, LeaseReady) for gate in command.gates}
    if gates:
        batch.room = await transaction.room(gates)
    lines = {line for command in commands if isinstance(command, LeaseReady) for line in command.lines}
    if lines:
        batch.lines = await transaction.lines(lines)
    run_ids = {command.run_id for command in commands if command.run_id}
    run_ids.update(run_id for command in commands for run_id in command.run_ids)
    task_ids = {task_id for command in commands for task_id in command.task_ids}
    batch.runs, elsewhere = await transaction.runs(run_ids, task_ids) if run_ids or task_ids else ({}, set())
    # Whatever happens to a code run wakes its own task.
    task_ids |= {run.id for run in batch.runs.values() if run.kind is RunKind.CODE}
    open_of = {command.run_id for command in commands if command.open_tasks} & batch.runs.keys()
    failed_of = {command.run_id for command in commands if command.failed_tasks} & batch.runs.keys()
    if task_ids or open_of or failed_of:
        batch.tasks = await transaction.tasks(task_ids, open_of, failed_of)
        if not waits:
            elsewhere |= {task.run_id for task in batch.tasks.values()} - batch.runs.keys()
    elsewhere |= await _load_buffers(transaction, batch, commands, open_of)
    promised = {each for command in commands for each in command.promise_keys}
    if promised:
        batch.open_promises = await transaction.open_promises(promised)
    referred = {each for command in commands for each in command.payloads}
    if referred:
        batch.gone_payloads = referred - await transaction.payloads(referred)
    return keys, elsewhere


async def _load_buffers(
    transaction: Transaction, batch: Batch, commands: Sequence[Command], open_of: set[str]
) -> set[str]:
    """Lock the buffers that the commands need; those that another server holds."""
    of_runs = {run_id for run_id in open_of if batch.runs[run_id].open_gates}
    wanted = {each for command in commands if command.gated for each in command.buffers(batch)}
    if not wanted and not of_runs:
        return set()
    batch.buffers, elsewhere = await transaction.buffers(wanted, of_runs)
    return elsewhere


def held_elsewhere(batch: Batch, items: list[Item], elsewhere: set[str]) -> list[Item]:
    """Commands that need what another server holds."""
    found = []
    for item in items:
        command = item.command
        needed = {command.run_id, *command.run_ids} | {
            batch.tasks[task_id].run_id for task_id in command.task_ids if task_id in batch.tasks
        }
        if command.gated:
            needed.update(command.buffers(batch))
        if needed & elsewhere and not isinstance(command, LeaseReady):
            found.append(item)
    return found
