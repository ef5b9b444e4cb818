"""Pages of lists."""

from typing import Any

from millstream.application.paging import PageInfo, PageRequest
from millstream.domain.errors import ValidationFailed
from millstream.wire.v1.pagination_pb2 import Pagination

_FIELDS = (
    "total",
    "page",
    "page_size",
    "total_pages",
    "limit",
    "offset",
    "next_page_token",
    "total_is_estimate",
)


def page_of(request: Any, by_offset: bool = False) -> PageRequest:
    """The page that a list request asks for; `by_offset` where it has limit and offset too."""
    page = PageRequest(
        page=request.page if request.HasField("page") else None,
        page_size=request.page_size if request.HasField("page_size") else None,
        page_token=request.page_token if request.HasField("page_token") else None,
        limit=request.limit if by_offset and request.HasField("limit") else None,
        offset=request.offset if by_offset and request.HasField("offset") else None,
    )
    page.check()
    return page


def pagination(info: PageInfo) -> Pagination:
    """What a list says of its page."""
    return Pagination(**{name: value for name in _FIELDS if (value := getattr(info, name)) is not None})


def known(number: int, last: int, field: str) -> int:
    """The enum number, 0 for "any". Raises ValidationFailed on one that the contract has not."""
    if not 0 <= number <= last:
        raise ValidationFailed.of(field, "is no value of the contract")
    return number
