"""`millstream correlations`."""

from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_TARGET, ApiKey, Json, Target, call
from millstream.cli.export import export
from millstream.cli.output import print_fields, print_json

app = typer.Typer(help="Read cascades by their correlation id.", no_args_is_help=True)

CorrelationId = Annotated[str, typer.Argument(help="Id of the cascade.", show_default=False)]


app.command("export")(export)


@app.callback()
def correlations() -> None:
    """Read cascades by their correlation id."""


@app.command()
def status(
    correlation_id: CorrelationId, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """Tell where a cascade stands."""
    found = call(target, api_key, lambda client: client.correlations.status(correlation_id))
    if as_json:
        print_json(found)
        return
    about = "about " if found.artifact_count_is_estimate else ""
    print_fields(
        {
            "cascade": found.correlation_id,
            "state": found.state,
            "work pending": "yes" if found.has_pending_work else "no",
            "artifacts": f"{about}{found.artifact_count}",
            "errors": str(found.error_count),
            "started": found.started_at,
            "last activity": found.last_activity_at,
        }
    )
