"""Artifacts and who may see them."""

from dataclasses import dataclass

from millstream.domain.struct_wire import Json

EXTERNAL = "external"
"""Producer of what clients publish."""


@dataclass(frozen=True, slots=True)
class Visibility:
    """Who may see an artifact; the publisher always may.

    Attributes:
        kind: "Public", "Private", "Labelled", "Tenant" or "After".
        agents: For Private.
        required_labels: For Labelled.
        tenant_id: For Tenant; "" means the publisher's own.
        ttl_us: For After, in microseconds from publication.
        then: For After, what follows; None means Public.
    """

    kind: str = "Public"
    agents: tuple[str, ...] = ()
    required_labels: tuple[str, ...] = ()
    tenant_id: str = ""
    ttl_us: int = 0
    then: "Visibility | None" = None


PUBLIC = Visibility()


@dataclass(frozen=True, slots=True)
class Reader:
    """Whom a visibility is judged for.

    Attributes:
        tenant: Its tenant.
        agent: Its agent name, or "".
        labels: Its labels.
        name: The principal's own, by which it is known as the publisher of what no agent made.
    """

    tenant: str
    agent: str = ""
    labels: frozenset[str] = frozenset()
    name: str = ""


def delay_us(visibility: Visibility) -> int:
    """Microseconds from publication until the visibility is no longer After."""
    total = 0
    while visibility.kind == "After":
        total += visibility.ttl_us
        visibility = visibility.then or PUBLIC
    return total


def settled(visibility: Visibility) -> Visibility:
    """The visibility that stays once every After has passed."""
    while visibility.kind == "After":
        visibility = visibility.then or PUBLIC
    return visibility


def foreign_tenant(visibility: Visibility, tenant: str) -> str:
    """Where a visibility names another tenant, as the path of that field in it; "" where it does not.

    Nothing crosses tenants, so such an artifact would go to nobody.
    """
    path = ""
    while visibility.kind == "After":
        path += "then."
        visibility = visibility.then or PUBLIC
    return f"{path}tenant_id" if visibility.kind == "Tenant" and visibility.tenant_id not in ("", tenant) else ""


def visible(visibility: Visibility, reader: Reader, owner_tenant: str, age_us: int) -> bool:
    """Whether the reader may see an artifact of this age (microseconds since publication)."""
    while visibility.kind == "After":
        if age_us < visibility.ttl_us:
            return False
        age_us -= visibility.ttl_us
        visibility = visibility.then or PUBLIC
    match visibility.kind:
        case "Public":
            return True
        case "Private":
            return reader.agent != "" and reader.agent in visibility.agents
        case "Labelled":
            return set(visibility.required_labels) <= reader.labels
        case "Tenant":
            return reader.tenant == (visibility.tenant_id or owner_tenant)
        case _:
            return False


@dataclass(slots=True)
class NewArtifact:
    """An artifact as its publisher gave it.

    Attributes:
        type: Name of its type.
        payload: A google.protobuf.Struct in wire form; b"" is {}.
        visibility: Who may see it.
        tags: Its channels.
        partition_key: The caller's, or "".
        correlation_id: The cascade to join, a UUID in canonical lower-case form, or "" for a new one.
        payload_digest: SHA-256 of a payload that is kept outside; `payload` is b"" then. b"" for none.
        payload_bytes: Its size.
        content: What it holds, while it is looked at; None where it is no JSON object, or too large to look at.
    """

    type: str
    payload: bytes = b""
    visibility: Visibility = PUBLIC
    tags: tuple[str, ...] = ()
    partition_key: str = ""
    correlation_id: str = ""
    payload_digest: bytes = b""
    payload_bytes: int = 0
    content: dict[str, Json] | None = None


@dataclass(slots=True)
class Artifact:
    """A stored artifact. Times are microseconds since the epoch; `seq` is its event's number in the run;
    `published_by` names the principal that published it, "" where an agent made it. Of a payload that is kept outside,
    `payload_digest` is the SHA-256, `payload_bytes` the size, and `payload` b""."""

    id: str
    tenant: str
    run_id: str
    seq: int
    type: str
    version: int
    payload: bytes
    produced_by: str
    visibility: Visibility
    tags: tuple[str, ...]
    partition_key: str
    created_us: int
    published_by: str = ""
    payload_digest: bytes = b""
    payload_bytes: int = 0


def size_bytes(artifact: Artifact) -> int:
    """About what an artifact takes on the wire, not less: pages and answers are bounded by it."""
    size = 400 + len(artifact.payload)
    if artifact.tags or artifact.partition_key:
        size += sum(map(_text_bytes, (*artifact.tags, artifact.partition_key)))
    visibility: Visibility | None = artifact.visibility
    while visibility is not None and visibility is not PUBLIC:
        size += 40 + sum(map(_text_bytes, (*visibility.agents, *visibility.required_labels, visibility.tenant_id)))
        visibility = visibility.then
    return size


def _text_bytes(text: str) -> int:
    return 4 + (len(text) if text.isascii() else 4 * len(text))
