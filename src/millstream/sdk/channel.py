"""Channels to the service, and the metadata that goes with each call."""

from typing import Final

import grpc

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""The largest message taken or sent."""


def open_channel(target: str, *, keepalive_s: float, own_connection: bool = False) -> grpc.aio.Channel:
    """An insecure channel to `host:port`.

    Args:
        target: where the service, or the proxy before it, listens.
        keepalive_s: a silent connection is probed after this many seconds, while calls are open on it.
        own_connection: share no connection with other channels of this process; a worker that reconnects
            must not be given the connection of a server that is going.
    """
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", int(keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 10_000),
            # gRPC's own pauses of up to 2 minutes would outlast the outage; ours decide.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 5_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.use_local_subchannel_pool", int(own_connection)),
            ("grpc.enable_retries", 0),
        ],
    )


def credentials(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata that says who calls."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()
