"""`millstream artifacts`."""

from datetime import datetime
from typing import Annotated, TypeAlias

import typer

from millstream.cli.connect import DEFAULT_LIMIT, DEFAULT_TARGET, ApiKey, Json, Limit, Target, call
from millstream.cli.output import ARTIFACT_COLUMNS, Columns, print_fields, print_json, print_list
from millstream.cli.watch import watch
from millstream.sdk import Artifact, ArtifactSummary, Client

app = typer.Typer(help="Read artifacts.", no_args_is_help=True)
app.command("watch")(watch)

_CONSUMED: Columns = {"consumed by": lambda a: a.consumed_by}

Type: TypeAlias = Annotated[str, typer.Option("--type", help="Of this type.")]
ProducedBy: TypeAlias = Annotated[str, typer.Option(help='Made by this agent, or "external".')]
Correlation: TypeAlias = Annotated[str, typer.Option("--correlation-id", "--correlation", help="Of this cascade.")]
Tag: TypeAlias = Annotated[str, typer.Option(help="With this tag.")]
Since: TypeAlias = Annotated[datetime | None, typer.Option(help="Stored at this time or later.")]
Until: TypeAlias = Annotated[datetime | None, typer.Option(help="Stored before this time.")]
VisibilityKind: TypeAlias = Annotated[
    str, typer.Option("--visibility", help="Public, Private, Labelled, Tenant or After.")
]


@app.command("list")
def list_(
    type: Type = "",  # noqa: A002
    produced_by: ProducedBy = "",
    correlation_id: Correlation = "",
    tag: Tag = "",
    visibility: VisibilityKind = "",
    since: Since = None,
    until: Until = None,
    consumptions: Annotated[bool, typer.Option("--consumptions", help="Also who took each up, and when.")] = False,
    limit: Limit = DEFAULT_LIMIT,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List artifacts, newest first."""
    columns = {**ARTIFACT_COLUMNS, **(_CONSUMED if consumptions else {})}

    async def work(client: Client) -> None:
        listing = client.artifacts.list(
            type=type,
            produced_by=produced_by,
            correlation_id=correlation_id,
            tag=tag,
            created_from=since,
            created_to=until,
            visibility=visibility,
            embed_meta=consumptions,
            page_size=min(limit or 100, 100),
        )
        await print_list(listing, columns, as_json=as_json, limit=limit, title="artifacts")

    call(target, api_key, work)


@app.command()
def summary(
    type: Type = "",  # noqa: A002
    produced_by: ProducedBy = "",
    correlation_id: Correlation = "",
    tag: Tag = "",
    visibility: VisibilityKind = "",
    since: Since = None,
    until: Until = None,
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Count artifacts by type, producer, visibility and tag."""

    async def work(client: Client) -> ArtifactSummary:
        return await client.artifacts.summary(
            type=type,
            produced_by=produced_by,
            correlation_id=correlation_id,
            tag=tag,
            created_from=since,
            created_to=until,
            visibility=visibility,
        )

    found = call(target, api_key, work)
    if as_json:
        print_json(found)
        return
    print_fields(
        {
            "artifacts": f"{found.total:,}",
            "by type": dict(found.by_type),
            "by producer": dict(found.by_producer),
            "by visibility": dict(found.by_visibility),
            "by tag": dict(found.tag_counts),
            "earliest": found.earliest_created_at,
            "latest": found.latest_created_at,
        }
    )


@app.command()
def get(
    artifact_id: Annotated[str, typer.Argument(help="Id of the artifact.", show_default=False)],
    target: Target = DEFAULT_TARGET,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show one artifact."""
    artifact = call(target, api_key, lambda client: client.artifacts.get(artifact_id))
    if as_json:
        print_json(artifact)
    else:
        print_fields(_fields(artifact))


def _fields(artifact: Artifact) -> dict[str, object]:
    return {
        "id": artifact.id,
        "type": f"{artifact.type} (version {artifact.version})",
        "produced by": artifact.produced_by,
        "cascade": artifact.correlation_id,
        "created": artifact.created_at,
        "visibility": artifact.visibility,
        "tags": artifact.tags,
        "partition key": artifact.partition_key,
        "payload": artifact.payload,
        "kept outside": f"{artifact.payload_ref} ({artifact.payload_bytes:,} bytes)" if artifact.payload_ref else None,
    }
