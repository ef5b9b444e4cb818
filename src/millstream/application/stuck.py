"""What is stuck: tasks that are retried, and what waits for a worker."""

from dataclasses import replace
from typing import Protocol

from millstream.application.paging import decode_token, encode_token, token_id, token_of
from millstream.application.sight import Sight, SightReads
from millstream.application.views.runs import StuckQuery, StuckTask
from millstream.domain.errors import ValidationFailed
from millstream.domain.principals import Principal

KEYS_MOST = 200


class StuckReads(SightReads, Protocol):
    """What is read of tasks that do not get on; see store.stuck."""

    async def retrying(
        self, tenant: str, query: StuckQuery, since_us: int, after: str, limit: int
    ) -> tuple[list[StuckTask], str]: ...
    async def waiting(self, tenant: str, query: StuckQuery, now_us: int, limit: int) -> list[StuckTask]: ...


async def stuck_tasks(
    reads: StuckReads, principal: Principal, query: StuckQuery, size: int, page_token: str, now_us: int
) -> tuple[list[StuckTask], str]:
    """Tasks of a page, and the token to go on with; those that wait come at once, one for each queue and kind."""
    following = ""
    if query.waiting:
        if page_token:
            raise ValidationFailed.of("page_token", "goes with tasks that are retried; what waits is one page")
        found = await reads.waiting(principal.tenant, query, now_us, KEYS_MOST)
    else:
        if query.unserved:
            raise ValidationFailed.of("unserved", "goes with tasks that wait; give why WAITING, or leave it out")
        after = decode_token(page_token, token_of("stuck"), token_id)[1] if page_token else ""
        found, following = await reads.retrying(principal.tenant, query, now_us - query.for_us, after, size)
    shown = await Sight(reads).tasks(principal, [each.task for each in found], now_us)
    items = [replace(each, task=task) for each, task in zip(found, shown, strict=True)]
    return items, encode_token("stuck", following) if following else ""
