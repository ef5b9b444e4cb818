"""Rows of two servers behind one proxy, as `millstream dev --processes 2` runs them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable

from tests.bench import rest
from tests.bench.artifacts import rate_floor, rest_load
from tests.bench.report import Load, Row
from tests.bench.stand import ORDER, Stand, two_servers


def _on_both(path: str, body: object, callers: int, check: rest.Check) -> Callable[
    [Stand], contextlib.AbstractAsyncContextManager[Load]
]:  # fmt: skip
    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with two_servers(stand) as port:
            both = dataclasses.replace(stand, layout=dataclasses.replace(stand.layout, port=port))
            async with rest_load(path, body, callers, check)(both) as load:
                yield load
            stand.published += both.published - stand.published

    return prepare


def rows() -> list[Row]:
    """Against the same with one server."""
    sync = _on_both("/api/v1/artifacts/sync", {"type": "Order", "payload": ORDER, "timeout": 30}, 64, rest.cascaded)
    publish = _on_both("/api/v1/artifacts", {"type": "Receipt", "payload": ORDER}, 32, rest.published)
    said = "with two server processes behind the proxy, a worker at each"
    return [
        Row("two-sync-rest-c64", f"sync-rest-c64 {said}", sync, floor=rate_floor("sync-rest-c64")),
        Row("two-publish-rest-c32", f"publish-rest-c32 {said}", publish, floor=rate_floor("publish-rest-c32")),
    ]
