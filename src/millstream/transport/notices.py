"""Notices that go with an answer."""

from millstream.transport.context import Context

HEADER_MOST = 1000
"""Characters of a notice in a header: all metadata of an answer has 8 KiB. The body has the rest."""


def tell_deprecated(context: Context, notice: str) -> None:
    """Say in a header that a type is deprecated; nothing where the notice is empty."""
    if notice:
        cut = len(notice) > HEADER_MOST
        context.headers["x-deprecated"] = notice[: HEADER_MOST - 3] + "..." if cut else notice
