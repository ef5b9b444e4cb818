"""`millstream promises`."""

from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, INCOMPLETE, ApiKey, Json, Limit, Target, call
from millstream.cli.given import json_value, labels_of
from millstream.cli.output import print_fields, print_json, print_list
from millstream.cli.tasks import fault
from millstream.sdk import Client, Promise

app = typer.Typer(help="Make, settle and await promises.", no_args_is_help=True)

PromiseId = Annotated[
    str, typer.Argument(metavar="ID|key:KEY", help="Its id, or key: and its key.", show_default=False)
]

_COLUMNS = {
    "id": lambda p: p.promise_id,
    "name": lambda p: p.name,
    "key": lambda p: p.key,
    "state": lambda p: p.state,
    "created": lambda p: p.created_at,
    "expires": lambda p: None if p.settled else p.expires_at,
    "settled by": lambda p: p.settled_by,
    "error": lambda p: fault(p.error),
}


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is about, such as approval.", show_default=False)],
    key: Annotated[str, typer.Option(help="A name for it, unique among the open promises.")] = "",
    input_: Annotated[
        str, typer.Option("--input", metavar="JSON", help="What whoever settles it should know: JSON, @file or -.")
    ] = "null",
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds until it is rejected. Default: 30 days.", show_default=False),
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label; repeatable.")] = None,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Make a promise."""
    given, labels = json_value(input_, "--input"), labels_of(label)
    _show(
        call(
            target,
            api_key,
            lambda client: client.promises.create(name, key=key, input=given, timeout=timeout, labels=labels),
        ),
        as_json,
    )


@app.command("list")
def list_(
    state: Annotated[str, typer.Option(help="In this state, such as PENDING.")] = "",
    key: Annotated[str, typer.Option(help="With this key.")] = "",
    name: Annotated[str, typer.Option(help="Of this name.")] = "",
    run: Annotated[str, typer.Option(help="In this run.")] = "",
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List promises, newest first."""

    async def work(client: Client) -> None:
        try:
            listing = client.promises.list(state=state, key=key, name=name, run_id=run)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--state") from error
        await print_list(listing, _COLUMNS, as_json=as_json, limit=limit, title="promises")

    call(target, api_key, work)


@app.command()
def get(promise: PromiseId, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show a promise with its input and value."""
    _show(call(target, api_key, lambda client: client.promises.get(promise)), as_json)


@app.command()
def resolve(
    promise: PromiseId,
    value: Annotated[str, typer.Argument(metavar="JSON", help="Its value: JSON, @file or -.")] = "null",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Give a promise its value, once."""
    given = json_value(value, "JSON")
    _show(call(target, api_key, lambda client: client.promises.resolve(promise, given)), as_json)


@app.command()
def reject(
    promise: PromiseId,
    code: Annotated[str, typer.Option(help="Machine-readable code, such as DECLINED. Default: REJECTED.")] = "",
    message: Annotated[str, typer.Option(help="Why, for people.")] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Reject a promise, once."""
    _show(call(target, api_key, lambda client: client.promises.reject(promise, code, message)), as_json)


@app.command()
def cancel(
    promise: PromiseId,
    reason: Annotated[str, typer.Option(help="Why, for the run's events.")] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Cancel a promise that nobody needs any more."""
    _show(call(target, api_key, lambda client: client.promises.cancel(promise, reason)), as_json)


@app.command("await")
def await_(
    promise: PromiseId,
    timeout: Annotated[float, typer.Option(min=0, max=300, help="Seconds to wait.")] = 30.0,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Wait until a promise is settled; exit code 4 unless it was resolved."""
    found = call(target, api_key, lambda client: client.promises.wait(promise, timeout=timeout))
    _show(found, as_json)
    if found.state != "RESOLVED":
        raise typer.Exit(INCOMPLETE)


def _show(promise: Promise, as_json: bool) -> None:
    if as_json:
        print_json(promise)
        return
    print_fields(
        {
            "id": promise.promise_id,
            "run": promise.run_id,
            "name": promise.name,
            "key": promise.key,
            "state": promise.state,
            "created": promise.created_at,
            "expires": None if promise.settled else promise.expires_at,
            "settled": promise.settled_at,
            "settled by": promise.settled_by,
            "error": fault(promise.error),
            "labels": promise.labels,
            "input": promise.input,
            "value": promise.value,
        }
    )
