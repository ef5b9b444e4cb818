"""An idempotency key, as a use case takes it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key of a call.

    Attributes:
        value: 1 to 255 printable ASCII characters.
        rpc: Name of the RPC, its scope beside tenant and principal.
        fingerprint: 16 bytes that tell this request from others.
    """

    value: str
    rpc: str
    fingerprint: bytes
