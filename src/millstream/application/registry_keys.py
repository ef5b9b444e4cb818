"""Idempotency keys of changes of the registry: claimed in the transaction whose effect they guard."""

import json

from millstream.application.catalog import RegistryChange
from millstream.application.views.idempotency import Key
from millstream.domain.batch import KeyClaim
from millstream.domain.errors import IdempotencyConflict
from millstream.domain.principals import Principal


async def claimed(change: RegistryChange, principal: Principal, key: Key | None) -> KeyClaim | None:
    """The earlier call with this key. Raises IdempotencyConflict where that was another request."""
    found = await change.key(principal.name, key) if key is not None else None
    if found is not None and key is not None and found.fingerprint != key.fingerprint:
        raise IdempotencyConflict(f"the idempotency key {key.value!r} was used with another request")
    return found


async def claim(
    change: RegistryChange, principal: Principal, key: Key | None, response: object, key_ttl_us: int
) -> None:
    """Claim the key, if there is one, with what its replays are rebuilt from; for `key_ttl_us` microseconds."""
    if key is not None:
        await change.claim(
            KeyClaim(
                principal.tenant,
                principal.name,
                key.rpc,
                key.value,
                key.fingerprint,
                json.dumps(response),
                change.now_us + key_ttl_us,
            )
        )
