"""A line of a file that is published: the artifact on it, or what is wrong with it, and what became of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import orjson

from millstream.cli.given import BadVisibility, visibility_of
from millstream.cli.publish_progress import LINE_BYTES_MOST
from millstream.sdk import NewArtifact, PayloadError, ServiceError
from millstream.sdk.results import BatchOutcome

_FIELDS: Final = {"type", "payload", "tags", "partition_key", "correlation_id", "visibility"}
_BOM: Final = b"\xef\xbb\xbf"
_PLACE: Final = re.compile(r"\bartifacts\[\d+\]\.")
"""Where in its batch an artifact was: of no meaning to whoever has a file."""


class BadLine(Exception):
    """What is on a line is no artifact."""


@dataclass(slots=True)
class Line:
    """A line of the file: its number, and the artifact on it or what is wrong with it; neither, where it is empty."""

    number: int
    end: int
    """Offset of the byte behind it."""
    raw: bytes
    artifact: NewArtifact | None = None
    fault: str = ""
    outcome: BatchOutcome | None = None

    @property
    def empty(self) -> bool:
        """There is nothing on it."""
        return self.artifact is None and not self.fault

    def read(self, run: str, type_name: str) -> None:
        """Reads the artifact on it, or what is wrong with it.

        Its idempotency key is made of the run and its number alone: whatever is changed on it, and whenever, it is
        published once.

        Raises:
            PayloadError: it has no end.
        """
        if len(self.raw) > LINE_BYTES_MOST:
            raise PayloadError(f"line {self.number} is longer than {LINE_BYTES_MOST:,} bytes: this is no file of lines")
        text = self.raw.removeprefix(_BOM) if self.number == 1 else self.raw
        if not text.strip():
            return
        key = blake2b(f"{run} {self.number}".encode(), digest_size=16).hexdigest()
        try:
            self.artifact = _artifact(orjson.loads(text), type_name, key)
        except orjson.JSONDecodeError as error:
            self.fault = f"is no JSON: {error}"
        except BadLine as error:
            self.fault = str(error)

    def result(self) -> dict[str, Any]:
        """What became of it."""
        if self.empty:
            return {"line": self.number, "status": "empty"}
        if self.outcome is None:
            return self._failed("BAD_LINE", self.fault, [])
        error = self.outcome.error
        if error is not None:
            details = [{"field": _PLACE.sub("", each.field), "message": each.message} for each in error.details]
            return self._failed(error.code, _message(error), details)
        return {
            "line": self.number,
            "status": self.outcome.status,
            "artifact_id": self.outcome.id,
            "correlation_id": self.outcome.run_id,
        }

    def _failed(self, code: str, message: str, details: list[dict[str, str]]) -> dict[str, Any]:
        error = {"code": code, "message": message, "details": details}
        return {"line": self.number, "status": "failed", "error": error}


def _message(error: ServiceError) -> str:
    if error.code == "IDEMPOTENCY_CONFLICT":
        return "the line has been published before, with another content"
    return _PLACE.sub("", error.message)


def _artifact(data: Any, type_name: str, key: str) -> NewArtifact:
    """The artifact on a line. Raises BadLine."""
    if not isinstance(data, dict):
        raise BadLine("must be a JSON object")
    if type_name:
        return NewArtifact((type_name, data), idempotency_key=key)
    unknown = sorted(data.keys() - _FIELDS)
    if unknown:
        raise BadLine(f"has the unknown field {unknown[0]!r}; it may have {', '.join(sorted(_FIELDS))}")
    name, payload = data.get("type"), data.get("payload", {})
    if not isinstance(name, str) or not name:
        raise BadLine("needs a type (or name one for all lines: millstream publish TYPE --file ...)")
    if not isinstance(payload, dict):
        raise BadLine("payload must be a JSON object")
    try:
        visibility = visibility_of(data.get("visibility"))
    except BadVisibility as error:
        raise BadLine(str(error)) from error
    return NewArtifact(
        (name, payload),
        tags=_texts(data.get("tags", [])),
        visibility=visibility,
        partition_key=_text(data, "partition_key"),
        correlation_id=_text(data, "correlation_id"),
        idempotency_key=key,
    )


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name, "")
    if not isinstance(value, str):
        raise BadLine(f"{name} must be a text")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadLine("tags must be a list of texts")
    return value
