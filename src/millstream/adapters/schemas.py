"""JSON Schema by jsonschema-rs: regular expressions of linear time, and nothing fetched from anywhere."""

from collections.abc import Callable

import jsonschema_rs

from millstream.domain.errors import FieldFault
from millstream.domain.struct_wire import Json

FAULTS_MOST = 20
MESSAGE_MOST = 200
"""Characters of a fault's message."""


def _no_fetch(uri: str) -> Json:
    raise ValueError(f"refers to {uri}, which is outside of the schema")


class JsonSchemas:
    """Compiles JSON Schemas (2020-12 unless $schema says otherwise)."""

    def compile(self, schema: Json) -> Callable[[Json, str], list[FieldFault]]:
        """A check that returns the faults of a value, their fields below a prefix. Raises ValueError on what is no
        JSON Schema."""
        if not isinstance(schema, dict):
            raise ValueError("must be an object")  # noqa: TRY004  # one error for all bad schemas
        try:
            validator = jsonschema_rs.validator_for(
                schema, pattern_options=jsonschema_rs.RegexOptions(), retriever=_no_fetch
            )
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            raise ValueError(_first_line(str(error))) from error

        def faults(value: Json, prefix: str) -> list[FieldFault]:
            if validator.is_valid(value):
                return []
            found = []
            for error in validator.iter_errors(value):
                found.append(FieldFault(_path(prefix, error.instance_path), _cut(error.message), _code(error)))
                if len(found) == FAULTS_MOST:
                    break
            return found

        return faults


def _first_line(text: str) -> str:
    return text.splitlines()[0][:300] if text else "is not a JSON Schema"


def _cut(message: str) -> str:
    """The message without the middle of the value at fault, which stands in it whole: it ends with what is wrong."""
    return (
        message if len(message) <= MESSAGE_MOST else f"{message[: MESSAGE_MOST // 2]}...{message[-MESSAGE_MOST // 2 :]}"
    )


def _path(prefix: str, parts: list[str | int]) -> str:
    path = prefix
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path


def _code(error: jsonschema_rs.ValidationError) -> str:
    name = type(error.kind).__name__.split("_")[-1].lower()
    return {"required": "REQUIRED", "type": "WRONG_TYPE", "additionalproperties": "UNKNOWN_FIELD"}.get(name, "INVALID")
