"""`millstream agents`."""

from typing import Annotated, Any

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, ApiKey, Json, Limit, Target, call
from millstream.cli.output import print_fields, print_json, print_list
from millstream.sdk import AgentSubscription, Client

app = typer.Typer(help="Read agents.", no_args_is_help=True)


def _consumes(agent: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for s in agent.subscriptions for name in s.types))


_COLUMNS = {
    "name": lambda a: a.name,
    "status": lambda a: a.status,
    "consumes": _consumes,
    "publishes": lambda a: a.outputs,
    "version": lambda a: a.version,
    "description": lambda a: a.description,
}


@app.command("list")
def list_(
    limit: Limit = DEFAULT_LIMIT, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """List agents, and whether a worker serves them."""

    async def work(client: Client) -> None:
        await print_list(client.agents.list(), _COLUMNS, as_json=as_json, limit=limit, title="agents")

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
            "status": found.status,
            "description": found.description,
            "subscriptions": [_subscription(s) for s in found.subscriptions],
            "publishes": found.outputs,
            "labels": found.labels,
            "queue": found.queue,
            "max concurrency": found.max_concurrency or "unbounded",
            "version": found.version,
            "created": found.created_at,
            "updated": found.updated_at,
        }
    )


def _subscription(subscription: AgentSubscription) -> dict[str, object]:
    """Only what is set."""
    fields = {
        "types": subscription.types,
        "where": subscription.where,
        "from_agents": subscription.from_agents,
        "tags": subscription.tags,
        "priority": subscription.priority,
        "delivery": subscription.delivery,
    }
    return {name: value for name, value in fields.items() if value}
