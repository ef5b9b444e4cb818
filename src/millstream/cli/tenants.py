"""`millstream tenants`."""

from typing import Annotated

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, ApiKey, Json, Limit, Target, call
from millstream.cli.given import labels_of
from millstream.cli.output import print_fields, print_json, print_list
from millstream.sdk import Client, Tenant

app = typer.Typer(help="Make and read tenants.", no_args_is_help=True)

Slug = Annotated[str, typer.Argument(help="Its name in paths and keys.", show_default=False)]

_COLUMNS = {
    "slug": lambda t: t.slug,
    "name": lambda t: t.name,
    "created": lambda t: t.created_at,
    "created by": lambda t: t.created_by,
}


@app.command()
def create(
    slug: Slug,
    name: Annotated[str, typer.Option(help="Its name for people. Default: the slug.")] = "",
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label; repeatable.")] = None,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Make a tenant; for administrators of the tenant default."""
    labels = labels_of(label)
    _show(call(target, api_key, lambda client: client.tenants.create(slug, name=name, labels=labels)), as_json)


@app.command("list")
def list_(
    limit: Limit = DEFAULT_LIMIT, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """List tenants by their slugs: those that you may see."""

    async def work(client: Client) -> None:
        await print_list(client.tenants.list(), _COLUMNS, as_json=as_json, limit=limit, title="tenants")

    call(target, api_key, work)


@app.command()
def get(slug: Slug, target: Target = DEFAULT_TARGET, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show a tenant."""
    _show(call(target, api_key, lambda client: client.tenants.get(slug)), as_json)


def _show(tenant: Tenant, as_json: bool) -> None:
    if as_json:
        print_json(tenant)
        return
    print_fields(
        {
            "slug": tenant.slug,
            "name": tenant.name,
            "id": tenant.id,
            "created": tenant.created_at,
            "created by": tenant.created_by,
            "labels": tenant.labels,
        }
    )
