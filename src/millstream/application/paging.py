"""Pages of lists: what callers ask for, and what they are told."""

import base64
import binascii
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from millstream.domain.errors import ValidationFailed

T = TypeVar("T")

DEFAULT_PAGE_SIZE = 50
EXACT_TOTAL = 10_000
"""Totals beyond this are estimates, so that a count never scans a large table."""
OFFSET_MOST = 100_000
"""Items that a page by number or offset may pass over: each is read and thrown away."""
PAGE_BYTES = 3 * 1024 * 1024
"""A page ends at this many bytes, below gRPC's message limit of 4 MiB."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page: page and page_size, limit and offset, or page_token. None is "not given"."""

    page: int | None = None
    page_size: int | None = None
    page_token: str | None = None
    limit: int | None = None
    offset: int | None = None

    def check(self) -> None:
        """Raise ValidationFailed where two styles are mixed, or too many items passed over."""
        by_page = self.page is not None
        by_token = bool(self.page_token)
        by_offset = self.limit is not None or self.offset is not None
        if by_page + by_token + by_offset > 1 or (by_offset and self.page_size is not None):
            field = "page_token" if by_token else "page"
            raise ValidationFailed.of(
                field, "give one of page with page_size, page_token with page_size, or limit with offset"
            )

        if self.skip > OFFSET_MOST:
            field = "page" if self.page is not None else "offset"
            raise ValidationFailed.of(
                field,
                f"goes past {OFFSET_MOST:,} items; go on by page_token, which costs the same on every page",
                "OUT_OF_RANGE",
            )

    @property
    def size(self) -> int:
        """Items at most."""
        return self.limit or self.page_size or DEFAULT_PAGE_SIZE

    @property
    def skip(self) -> int:
        """Items to pass over."""
        if self.page is not None:
            return (self.page - 1) * self.size
        return self.offset or 0


@dataclass(frozen=True, slots=True)
class PageInfo:
    """Where a page stands; None fields are not shown."""

    total: int | None = None
    page: int | None = None
    page_size: int | None = None
    total_pages: int | None = None
    limit: int | None = None
    offset: int | None = None
    next_page_token: str | None = None
    total_is_estimate: bool | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items with where they stand."""

    items: list[T]
    info: PageInfo


def text_bytes(*texts: str) -> int:
    """What texts take on the wire."""
    return sum(4 + (len(text) if text.isascii() else len(text.encode())) for text in texts)


def fitting(items: Sequence[T], limit: int, size_bytes: Callable[[T], int], most_bytes: int = PAGE_BYTES) -> list[T]:
    """The first items: at most `limit`, and at most so many bytes of them, but for the first."""
    size = 0
    for n, item in enumerate(items[:limit]):
        size += size_bytes(item)
        if n and size > most_bytes:
            return list(items[:n])
    return list(items[:limit])


def encode_token(*parts: str | int) -> str:
    """An opaque page token of the parts."""
    text = "\x1f".join(map(str, parts)).encode()
    return base64.urlsafe_b64encode(text + _sum(text)).decode().rstrip("=")


def _whole(raw: bytes) -> bytes:
    text = raw[:-4]
    if _sum(text) != raw[-4:]:
        raise ValueError
    return text


def _sum(text: bytes) -> bytes:
    """What tells a token that lost or changed a character: it may still be one, of another place."""
    return zlib.crc32(text).to_bytes(4, "big")


def decode_token(token: str, *read: Callable[[str], Any], field: str = "page_token") -> list[Any]:
    """The parts of a page token, each as its own function reads it, which raises ValueError on what it is not.

    Raises ValidationFailed, naming the field, on a token that this service did not make, or made for another list.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        return [each(part) for each, part in zip(read, _whole(raw).decode().split("\x1f"), strict=True)]
    except (binascii.Error, ValueError):
        raise ValidationFailed.of(field, "is not a token of this list; start again without it") from None


def token_of(kind: str) -> Callable[[str], str]:
    """Reads what a page token says that it is for, which must be this."""

    def read(part: str) -> str:
        if part != kind:
            raise ValueError
        return part

    return read


def token_id(part: str) -> str:
    """A UUID of a page token."""
    return str(UUID(part))


def token_number(part: str) -> int:
    """A number of a page token that a bigint can hold."""
    return _number(part, 1 << 63)


def token_count(part: str) -> int:
    """A number of a page token that an integer of the database can hold."""
    return _number(part, 1 << 31)


def _number(part: str, bound: int) -> int:
    if not (part.isascii() and part.isdigit() and int(part) < bound):
        raise ValueError
    return int(part)


def page_info(
    request: PageRequest, total: tuple[int, bool] | None, next_token: str, offset_style: bool = False, cut: bool = False
) -> PageInfo:
    """Where a page stands, in the style that was asked for.

    Args:
        total: Items that match and whether that is an estimate; None in the token style, where nobody counts.
        next_token: Token of the next page, "" on the last.
        offset_style: The list's own style, where the caller gave none, is limit and offset.
        cut: The page ends before its limit, by its bytes: the next offset would pass items over, so the token is told.
    """
    size = request.size
    count, estimate = total if total is not None else (None, False)
    flag = True if estimate else None
    if request.page_token is not None:
        return PageInfo(page_size=size, next_page_token=next_token or None)
    if request.page is None and (
        request.limit is not None or request.offset is not None or _bare(request, offset_style)
    ):
        following = next_token if cut and next_token else None
        return PageInfo(total=count, limit=size, offset=request.skip, next_page_token=following, total_is_estimate=flag)
    pages = -(-count // size) if count is not None else None
    return PageInfo(
        total=count,
        page=request.page or 1,
        page_size=size,
        total_pages=pages,
        next_page_token=next_token or None,
        total_is_estimate=flag,
    )


def _bare(request: PageRequest, offset_style: bool) -> bool:
    return offset_style and request.page_size is None
