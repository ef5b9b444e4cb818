"""`millstream workflow`: what is done with a run of a workflow, named as the paths of tenants do."""

import typer

from millstream.cli import run_operations, run_watch, runs, task_logs

app = typer.Typer(
    help="Retry a run of a workflow, and look into it: as `runs` does, which has more.", no_args_is_help=True
)
app.command("retry")(run_operations.retry)
app.command("cancel")(run_operations.cancel)
app.command("watch-tasks")(run_watch.watch_tasks)
app.command("children")(runs.children)
app.command("task-attempts")(runs.task_attempts)
app.command("task-logs")(task_logs.workflow_task_logs)
