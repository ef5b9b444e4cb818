"""What a payload may hold, wherever it comes from."""

from millstream.domain.struct_wire import Json

DEPTH_MOST = 30
"""Containers in containers at most."""
EXACT = 2**53
"""Integers are below it in size: a double holds them exactly."""


def payload_fault(value: Json, depth_most: int = DEPTH_MOST) -> str:
    """What is wrong with a payload, in words for people; "" if nothing."""
    level: list[Json] = [value]
    for _ in range(depth_most + 1):
        for each in level:
            if isinstance(each, int) and not isinstance(each, bool) and abs(each) >= EXACT:
                return "has an integer of 2^53 or more, which JSON's numbers cannot hold exactly; make it a text"
        level = [inner for each in level for inner in _within(each)]
        if not level:
            return ""
    return f"is nested deeper than {depth_most} levels"


def _within(value: Json) -> list[Json]:
    if isinstance(value, dict):
        return [*value.values()]
    return value if isinstance(value, list) else []
