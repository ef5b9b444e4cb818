"""What the owner path needs of a batch: whether this process holds it all, and that."""

from millstream.application.engine.cache import RunCache
from millstream.application.engine.commands import Command
from millstream.application.engine.queue import Item
from millstream.domain.batch import Batch


def is_owned(cache: RunCache, command: Command) -> bool:
    """Whether all that the command needs is in the cache, and as this process last wrote it."""
    if command.locked or (command.open_tasks and not command.cached_tasks):
        return False
    if command.run_id and not command.new_run and not _knows(cache, command):
        return False
    if command.gated and not _knows_buffers(cache, command):
        return False
    tasks = [cache.task(task_id) for task_id in command.task_ids]
    return all(task is not None and cache.leads(task.run_id) for task in tasks)


def _knows(cache: RunCache, command: Command) -> bool:
    """Whether the command's run is in the cache, with all that is needed of it."""
    owned = cache.run(command.run_id)
    if owned is None or not cache.leads(command.run_id):
        return False
    return owned.knows_tasks if command.open_tasks else True


def _knows_buffers(cache: RunCache, command: Command) -> bool:
    """Whether all that waits in the command's run is in the cache."""
    run_id = command.run_id
    for task_id in command.task_ids:
        task = cache.task(task_id)
        run_id = task.run_id if task is not None else run_id
    owned = cache.run(run_id)
    return owned is None or owned.knows_buffers


def load_owned(cache: RunCache, batch: Batch, items: list[Item]) -> None:
    """Give a batch what its commands need, from the cache."""
    for item in items:
        command = item.command
        run_ids = [command.run_id] if command.run_id else []
        for task_id in command.task_ids:
            task = cache.task(task_id)
            if task is not None:
                batch.tasks[task_id] = task
                run_ids.append(task.run_id)
        for run_id in run_ids:
            owned = cache.run(run_id)
            if owned is not None:
                batch.runs[run_id] = owned.run
                if run_id in owned.tasks:
                    # A code run's own task: whatever happens to the run wakes it.
                    batch.tasks[run_id] = owned.tasks[run_id]
                if command.open_tasks:
                    batch.tasks.update(owned.tasks)
                if command.gated:
                    known = owned.buffers
                    batch.buffers.update({each: known[each] for each in command.buffers(batch) if each in known})
