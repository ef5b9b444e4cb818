"""Histories of code-first runs: what their code was told and did, kept to lead changed code through them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from millstream.sdk.errors import PayloadError
from millstream.v1 import activation_pb2


@dataclass(frozen=True, slots=True)
class History:
    """What a run's code was told and did, since it began or continued as new.

    Attributes:
        first_number: Commands given before.
        seen_sequence: The last event that the code has looked at; what stands behind it has no commands yet.
        items: Events in order, each with the commands given at it behind it.
    """

    run_id: str
    workflow: str
    version: str
    first_number: int
    seen_sequence: int
    items: Sequence[activation_pb2.HistoryItem]

    def to_dict(self) -> dict[str, Any]:
        """As JSON: what `millstream runs history ID --json` prints."""
        return {
            "run_id": self.run_id,
            "workflow": self.workflow,
            "version": self.version,
            "first_number": self.first_number,
            "seen_sequence": self.seen_sequence,
            "items": [MessageToDict(item, preserving_proto_field_name=True) for item in self.items],
        }

    def lines(self) -> Iterator[tuple[int, int | None, str, str]]:
        """For people: number of the event, of the command given at it (None: the event itself), type, what about."""
        for item in self.items:
            if item.HasField("event"):
                event = item.event
                about = event.name or (f"of {event.step}" if event.step else "")
                yield event.sequence, None, activation_pb2.HistoryEvent.Type.Name(event.type), about
            else:
                given = item.command
                about = given.name or (f"of {given.step}" if given.step else "")
                kind = activation_pb2.RecordedCommand.Type.Name(given.type)
                yield given.after_sequence, given.number, kind, about

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "History":
        """The value of `to_dict`.

        Raises:
            PayloadError: it is no history; says what is wrong.
        """
        try:
            items = [ParseDict(item, activation_pb2.HistoryItem()) for item in data["items"]]
            names = (str(data["run_id"]), str(data["workflow"]), str(data["version"]))
            return cls(*names, int(data["first_number"]), int(data["seen_sequence"]), items)
        except KeyError as error:
            raise PayloadError(f"is no history of a run: {error} is missing") from None
        except (ParseError, TypeError, ValueError) as error:
            raise PayloadError(f"is no history of a run: {error}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> "History":
        """The value of an exported history. Raises PayloadError as `from_dict`."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PayloadError(f"is no JSON: {error}") from None
        if not isinstance(data, dict):
            raise PayloadError("is no history of a run: it must be a JSON object")
        return cls.from_dict(data)
