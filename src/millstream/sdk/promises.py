"""Promises: made, settled, awaited and read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from millstream.sdk.calls import Area, Listing, choice
from millstream.sdk.payload import JsonValue, fill_value, from_value
from millstream.sdk.policies import Seconds, duration
from millstream.sdk.results import when
from millstream.sdk.run_results import Fault
from millstream.v1 import promise_pb2
from millstream.v1 import promise_service_pb2 as wire

ANSWER_S = 30.0
"""What a call that waits may take beside its wait."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A value that somebody gives later, once. Lists leave out `input` and `value`."""

    promise_id: str
    run_id: str
    name: str
    key: str
    state: str
    """PENDING, RESOLVED, REJECTED or CANCELLED."""
    created_at: datetime | None
    expires_at: datetime | None
    """When it is rejected with PROMISE_TIMEOUT, unless it is settled before."""
    settled_at: datetime | None
    settled_by: str
    input: JsonValue
    value: JsonValue
    error: Fault | None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """It was resolved, rejected or cancelled."""
        return self.state != "PENDING"

    @classmethod
    def from_wire(cls, wire: Any) -> "Promise":
        """The value of a Promise, or of a response with a promise's fields."""
        return cls(
            promise_id=wire.promise_id,
            run_id=wire.run_id,
            name=wire.name,
            key=wire.key,
            state=promise_pb2.Promise.State.Name(wire.state),
            created_at=when(wire, "created_at"),
            expires_at=when(wire, "expires_at"),
            settled_at=when(wire, "settled_at"),
            settled_by=wire.settled_by,
            input=from_value(wire.input),
            value=from_value(wire.value),
            error=Fault.of(wire),
            labels=dict(wire.labels),
        )


class Promises(Area):
    """Makes promises, and reads, settles and awaits any promise.

    A promise is named by its id, or by "key:" and its key: of several that had the key, the open one is meant, or else
    the latest.
    """

    async def create(
        self,
        name: str,
        *,
        key: str = "",
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        timeout: Seconds | None = None,  # noqa: ASYNC109  (the promise's own, not this call's)
        labels: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> Promise:
        """Creates a promise by itself.

        Args:
            name: what it is about, such as "approval".
            key: a name for it, unique among the tenant's open promises.
            input: what whoever settles it should know, JSON or a model.
            timeout: when it is rejected with PROMISE_TIMEOUT, over 0 s to 366 days. Default 30 days.
            labels: at most 32.
            idempotency_key: the same key again makes nothing and gives the first answer. Default: one per call.

        Raises:
            PayloadError: the input is not JSON.
            ConflictError: an open promise has the key.
            ServiceError: the service refused it.
        """
        request = wire.CreatePromiseRequest(name=name, key=key, labels=labels or {})
        fill_value(request.input, input)
        if timeout is not None:
            request.timeout.CopyFrom(duration(timeout))
        answer = await self._calls.write(
            "PromiseService/CreatePromise", request, wire.CreatePromiseResponse, key=idempotency_key
        )
        return Promise.from_wire(answer.message)

    async def get(self, promise_id: str) -> Promise:
        """Gets a promise with its input and value."""
        request = wire.GetPromiseRequest(promise_id=promise_id)
        return Promise.from_wire(await self._calls.read("PromiseService/GetPromise", request, wire.GetPromiseResponse))

    async def resolve(self, promise_id: str, value: JsonValue = None, *, idempotency_key: str = "") -> Promise:
        """Gives a promise its value, once; an equal value again changes nothing.

        Raises:
            PayloadError: the value is not JSON.
            ConflictError: it was settled otherwise.
            ServiceError: the service refused it.
        """
        request = wire.ResolvePromiseRequest(promise_id=promise_id)
        fill_value(request.value, value)
        answer = await self._calls.write(
            "PromiseService/ResolvePromise", request, wire.ResolvePromiseResponse, key=idempotency_key
        )
        return Promise.from_wire(answer.message)

    async def reject(self, promise_id: str, code: str = "", message: str = "", *, idempotency_key: str = "") -> Promise:
        """Rejects a promise with an error, once; the same again changes nothing. `code` such as "DECLINED".

        Raises:
            ConflictError: it was settled otherwise.
            ServiceError: the service refused it.
        """
        request = wire.RejectPromiseRequest(promise_id=promise_id, code=code, message=message)
        answer = await self._calls.write(
            "PromiseService/RejectPromise", request, wire.RejectPromiseResponse, key=idempotency_key
        )
        return Promise.from_wire(answer.message)

    async def cancel(self, promise_id: str, reason: str = "") -> Promise:
        """Cancels a promise that nobody needs any more.

        Raises:
            ConflictError: it was settled.
            ServiceError: the service refused it.
        """
        request = wire.CancelPromiseRequest(promise_id=promise_id, reason=reason)
        answer = await self._calls.write("PromiseService/CancelPromise", request, wire.CancelPromiseResponse)
        return Promise.from_wire(answer.message)

    async def wait(
        self,
        promise_id: str,
        *,
        timeout: float = 30.0,  # noqa: ASYNC109  (the service's own wait, not this call's)
        fail_on_timeout: bool = False,
    ) -> Promise:
        """Waits until a promise is settled, and returns it as it stands then.

        Args:
            timeout: seconds to wait, 0 to 300; a promise that is not settled by then is returned PENDING.
            fail_on_timeout: raise DeadlineError instead.

        Raises:
            ServiceError: the service refused it.
        """
        request = wire.AwaitPromiseRequest(promise_id=promise_id, timeout=timeout, fail_on_timeout=fail_on_timeout)
        answer = await self._calls.read(
            "PromiseService/AwaitPromise", request, wire.AwaitPromiseResponse, timeout_s=timeout + ANSWER_S
        )
        return Promise.from_wire(answer)

    def list(
        self, *, state: str = "", key: str = "", name: str = "", run_id: str = "", page_size: int = 100
    ) -> Listing[Promise]:
        """Lists promises, newest first; `state` such as "PENDING".

        Raises:
            ValueError: there is no such state.
        """
        wanted = choice(promise_pb2.Promise.State, state)

        async def fetch(cursor: str | None) -> tuple[list[Promise], str | None]:
            request = wire.ListPromisesRequest(
                state=wanted, key=key, name=name, run_id=run_id, page_size=page_size, page_token=cursor or ""
            )
            page = await self._calls.read("PromiseService/ListPromises", request, wire.ListPromisesResponse)
            return [Promise.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)
