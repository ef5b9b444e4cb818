"""What the use cases of payloads take and give."""

from dataclasses import dataclass

STRUCT_TYPE = "application/x-protobuf; message=google.protobuf.Struct"
"""Of payloads that came within requests, and were checked there: nobody may upload what claims to be one."""


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """A payload outside the hot tables.

    Attributes:
        blob: Id of its chunks.
        size_bytes: Of the whole content.
        media_type: As its first uploader named it.
        created_us: When it was stored, microseconds since the epoch.
    """

    blob: str
    size_bytes: int
    media_type: str
    created_us: int = 0
