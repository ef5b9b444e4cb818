"""`millstream agents`."""

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any, TypeAlias

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, INCOMPLETE, ApiKey, Json, Limit, Target, call
from millstream.cli.output import print_fields, print_json, print_list
from millstream.sdk import Agent, AgentSubscription, Client, WaitingGate

app = typer.Typer(help="Register, read, pause and run agents.", no_args_is_help=True)


def _consumes(agent: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for s in agent.subscriptions for name in s.types))


_COLUMNS = {
    "name": lambda a: a.name,
    "status": lambda a: a.status,
    "protocol": lambda a: a.protocol,
    "consumes": _consumes,
    "publishes": lambda a: a.outputs,
    "version": lambda a: a.version,
    "description": lambda a: a.description,
}


@app.command("list")
def list_(
    name: Annotated[str, typer.Option(help="With this name.")] = "",
    status: Annotated[str, typer.Option(help="ONLINE, OFFLINE, PAUSED or DELETED.")] = "",
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List agents, and whether a worker serves them."""

    async def work(client: Client) -> None:
        try:
            listing = client.agents.list(name=name, status=status)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--status") from error
        await print_list(listing, _COLUMNS, as_json=as_json, limit=limit, title="agents")

    call(target, api_key, work)


@app.command()
def get(
    agent: Annotated[str, typer.Argument(help="Name or id of the agent.", show_default=False)],
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show an agent with its subscriptions."""
    found = call(target, api_key, lambda client: client.agents.get(agent))
    if as_json:
        print_json(found)
        return
    print_fields(
        {
            "name": found.name,
            "id": found.id,
            "status": _status(found),
            "protocol": found.protocol,
            "url": found.url,
            "description": found.description,
            "subscriptions": [_subscription(s) for s in found.subscriptions],
            "publishes": found.outputs,
            "labels": found.labels,
            "queue": found.queue,
            "max concurrency": found.max_concurrency or "unbounded",
            "retry": _set(asdict(found.retry)) if found.retry else None,
            "timeouts": _set(asdict(found.timeouts)) if found.timeouts else None,
            "version": found.version,
            "created": found.created_at,
            "updated": found.updated_at,
            "served by": [f"{each.name or each.worker_id} since {each.connected_at}" for each in found.served_by],
            "waiting gates": found.waiting_gates,
            "gates": [_gate(each) for each in found.gates],
        }
    )


Name: TypeAlias = Annotated[str, typer.Argument(help="Name or id of the agent.", show_default=False)]
File: TypeAlias = Annotated[
    typer.FileText,
    typer.Option("--file", "-f", help="JSON of the agent, as REST takes it; - for stdin.", show_default=False),
]


@app.command()
def create(file: File, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Register an agent from a file."""
    spec = _spec(file)
    _print(call(target, api_key, lambda client: client.agents.create(spec)), as_json)


@app.command()
def update(
    agent: Name,
    file: File,
    expected_version: Annotated[
        int | None, typer.Option(min=1, help="Only where the agent has this version.", show_default=False)
    ] = None,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Replace what an agent is registered with."""
    spec = _spec(file)

    async def work(client: Client) -> Agent:
        return await client.agents.update(agent, spec, expected_version=expected_version)

    _print(call(target, api_key, work), as_json)


@app.command()
def delete(agent: Name, target: Target = DEFAULT_TARGET, api_key: ApiKey = None) -> None:
    """Delete an agent: nothing activates it any more; tasks it has are worked off."""
    call(target, api_key, lambda client: client.agents.delete(agent))
    print(f"{agent} is deleted")


@app.command()
def pause(
    agent: Name,
    reason: Annotated[str, typer.Option(help="Why, for people.", show_default=False)] = "",
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Let an agent's tasks wait until it is resumed; what runs goes on."""
    _print(call(target, api_key, lambda client: client.agents.pause(agent, reason)), as_json)


@app.command()
def resume(agent: Name, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Let a paused agent's tasks go on."""
    _print(call(target, api_key, lambda client: client.agents.resume(agent)), as_json)


@app.command()
def run(
    agent: Name,
    inputs: Annotated[
        list[str],
        typer.Option("--input", "-i", help="Type and payload, as Order={...}; repeat for more.", show_default=False),
    ],
    timeout: Annotated[float, typer.Option(min=1, max=300, help="Seconds to wait.")] = 30.0,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Run an agent by name and wait for what it makes."""
    items = [_input(text) for text in inputs]
    result = call(target, api_key, lambda client: client.agents.run(agent, *items, timeout=timeout))
    if as_json:
        print_json(result)
    else:
        for artifact in result.artifacts:
            print(f"{artifact.type} {artifact.id} {json.dumps(artifact.payload)}")
        for failure in result.failures:
            print(f"{failure.agent} failed: {failure.code}: {failure.message}")
        if result.truncated:
            made_by = f"--correlation-id {result.correlation_id} --produced-by {agent}"
            print(f"and more: millstream artifacts list {made_by}")
        if result.deprecation:
            print(f"deprecated: {result.deprecation}", file=sys.stderr)
    if not result.completed or result.failures:
        raise typer.Exit(INCOMPLETE)


@app.command()
def history(agent: Name, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Count what an agent has made and taken up, of the newest artifacts and tasks."""
    found = call(target, api_key, lambda client: client.agents.history(agent))
    if as_json:
        print_json(found)
        return
    print_fields({"produced": dict(found.produced), "consumed": dict(found.consumed), "truncated": found.truncated})


def _print(agent: Agent, as_json: bool) -> None:
    if as_json:
        print_json(agent)
    else:
        print(f"{agent.name} version {agent.version}: {_status(agent)}")


def _status(agent: Agent) -> str:
    if agent.status != "PAUSED":
        return agent.status
    return f"PAUSED by {agent.paused_by}" + (f": {agent.pause_reason}" if agent.pause_reason else "")


def _spec(file: typer.FileText) -> dict[str, Any]:
    try:
        spec = json.load(file)
    except ValueError as error:
        raise typer.BadParameter(f"is no JSON: {error}", param_hint="--file") from error
    if not isinstance(spec, dict):
        raise typer.BadParameter("must hold a JSON object", param_hint="--file")
    return spec


def _input(text: str) -> tuple[str, dict[str, Any]]:
    name, _, payload = text.partition("=")
    try:
        data = json.loads(payload or "{}")
    except ValueError as error:
        raise typer.BadParameter(f"the payload of {name} is no JSON: {error}", param_hint="--input") from error
    if not isinstance(data, dict):
        raise typer.BadParameter(f"the payload of {name} must be a JSON object", param_hint="--input")
    return name, data


def _gate(gate: WaitingGate) -> dict[str, object]:
    fields = {
        "correlation": gate.correlation_id,
        "key": gate.key,
        "have": dict(gate.have),
        "need": dict(gate.need),
        "within": gate.within_count or None,
        "expires": str(gate.expires_at),
    }
    return _set(fields)


def _set(fields: dict[str, Any]) -> dict[str, Any]:
    """Only what is set; lengths of time are in seconds."""
    return {name: value for name, value in fields.items() if value not in (None, "", (), [], {})}


def _subscription(subscription: AgentSubscription) -> dict[str, object]:
    """Only what is set, by the names of the contract; lengths of time are in seconds."""
    join = {
        "by": subscription.join,
        "within": subscription.join_within,
        "within_count": subscription.join_within_count,
    }
    fields = {
        "types": subscription.types,
        "where": subscription.where,
        "from_agents": subscription.from_agents,
        "tags": subscription.tags,
        "priority": subscription.priority or None,
        "delivery": subscription.delivery,
        "mode": "" if subscription.mode == "both" else subscription.mode,
        "counts": dict(subscription.counts),
        "join": _set(join),
        "batch": _set({"size": subscription.batch_size or None, "timeout": subscription.batch_timeout}),
        "scope": subscription.scope,
        "gate_timeout": subscription.gate_timeout,
    }
    return _set(fields)
