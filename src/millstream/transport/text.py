"""Text of requests holds no NUL character: PostgreSQL's text cannot.

Zero bytes are all over payloads and numbers, so the strings of a request are walked only where its bytes have one,
and by a plan that is made once per message type.
"""

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from millstream.domain.errors import ValidationFailed


class TextPlan:
    """Where the strings of a message type are. Payload bytes are not among them."""

    __slots__ = ("children", "lists", "maps", "singles")

    def __init__(self) -> None:
        self.singles: list[str] = []
        self.lists: list[str] = []
        self.maps: list[str] = []
        self.children: list[tuple[str, bool, TextPlan]] = []

    @classmethod
    def of(
        cls,
        descriptor: Descriptor,
        skip: frozenset[str] = frozenset(),
        known: "dict[str, TextPlan] | None" = None,
    ) -> "TextPlan":
        """The plan of a message type; its fields `skip` are left out."""
        known = {} if known is None else known
        plan = known.setdefault(descriptor.full_name, cls())
        for field in descriptor.fields:
            if field.name not in skip:
                plan.add(field, known)
        return plan

    def add(self, field: FieldDescriptor, known: "dict[str, TextPlan]") -> None:
        """Add a field to the plan."""
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            self.maps.append(field.name)
        elif kind is not None:
            child = known.get(kind.full_name) or TextPlan.of(kind, known=known)
            self.children.append((field.name, field.is_repeated, child))
        elif field.type == FieldDescriptor.TYPE_STRING:
            (self.lists if field.is_repeated else self.singles).append(field.name)

    def check(self, message: Message, prefix: str = "") -> None:
        """Raise ValidationFailed where a string has a NUL character."""
        for name in self.singles:
            if "\0" in getattr(message, name):
                raise _fault(prefix + name)
        for name in self.lists:
            for index, text in enumerate(getattr(message, name)):
                if "\0" in text:
                    raise _fault(f"{prefix}{name}[{index}]")
        for name in self.maps:
            for key, text in getattr(message, name).items():
                if "\0" in key or (isinstance(text, str) and "\0" in text):
                    raise _fault(f"{prefix}{name}")
        for name, repeated, plan in self.children:
            if repeated:
                for index, child in enumerate(getattr(message, name)):
                    plan.check(child, f"{prefix}{name}[{index}].")
            elif message.HasField(name):
                plan.check(getattr(message, name), f"{prefix}{name}.")


def _fault(field: str) -> ValidationFailed:
    return ValidationFailed.of(field, "must not contain a NUL character")
