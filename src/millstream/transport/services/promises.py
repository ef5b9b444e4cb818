"""PromiseService: making, reading, settling and awaiting promises."""

from typing import Final

from google.protobuf.message import Message

from millstream.application.views.promises import PromiseView
from millstream.domain.promises import Resolution
from millstream.transport.context import Context
from millstream.transport.mapping import promises as mapping
from millstream.transport.mapping.pages import page_of, pagination
from millstream.transport.use_cases import Promises
from millstream.wire.v1 import promise_service_pb2 as wire

DEFAULT_WAIT_S: Final = 30.0


class PromiseService:
    """Promises over the wire."""

    def __init__(self, promises: Promises) -> None:
        self._promises = promises

    async def create_promise(self, request: wire.CreatePromiseRequest, context: Context) -> Message:
        """Create a promise."""
        return _answer(
            await self._promises.create(context.principal, mapping.new_promise(request), context.key), context
        )

    async def list_promises(self, request: wire.ListPromisesRequest, context: Context) -> Message:
        """List promises."""
        page = await self._promises.list(context.principal, mapping.promise_query(request), page_of(request))
        out = wire.ListPromisesResponse(pagination=pagination(page.info))
        for task in page.items:
            mapping.put_promise(out.items.add(), task)
        return out

    async def get_promise(self, request: wire.GetPromiseRequest, context: Context) -> Message:
        """Get a promise with its input and value."""
        return mapping.promise_view(await self._promises.get(context.principal, mapping.ref_of(request.promise_id)))

    async def resolve_promise(self, request: wire.ResolvePromiseRequest, context: Context) -> Message:
        """Give a promise its value."""
        ref, outcome = mapping.ref_of(request.promise_id), Resolution(request.value)
        return _answer(await self._promises.settle(context.principal, ref, outcome, context.key), context)

    async def reject_promise(self, request: wire.RejectPromiseRequest, context: Context) -> Message:
        """Reject a promise."""
        ref, outcome = mapping.ref_of(request.promise_id), mapping.rejection_of(request)
        return _answer(await self._promises.settle(context.principal, ref, outcome, context.key), context)

    async def cancel_promise(self, request: wire.CancelPromiseRequest, context: Context) -> Message:
        """Cancel a promise."""
        ref = mapping.ref_of(request.promise_id)
        return _answer(await self._promises.cancel(context.principal, ref, request.reason, context.key), context)

    async def await_promise(self, request: wire.AwaitPromiseRequest, context: Context) -> Message:
        """Wait until a promise is settled."""
        timeout_s = request.timeout if request.HasField("timeout") else DEFAULT_WAIT_S
        ref = mapping.ref_of(request.promise_id)
        return mapping.promise_view(
            await self._promises.wait(context.principal, ref, timeout_s, request.fail_on_timeout)
        )


def _answer(view: PromiseView, context: Context) -> Message:
    context.replayed(view.replayed)
    return mapping.promise_view(view)
