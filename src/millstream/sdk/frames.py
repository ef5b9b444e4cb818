"""Leases by their fences, and the pieces of messages that are put together from ready bytes."""

from typing import NamedTuple


class Fence(NamedTuple):
    """A lease by the task's id and the number of the attempt."""

    task_id: str
    attempt: int


def frame(tag: int, body: bytes) -> bytes:
    """`body` as one item of a repeated message field."""
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    head = bytearray((tag,))
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + body
