"""Channels to the service, and the metadata that goes with each call."""

import re
from typing import Final

import grpc

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""The largest message taken or sent."""


def check_target(target: str) -> None:
    """Refuse what gRPC would only fail on later, or take for something else.

    Raises:
        ValueError: the target is neither `host:port` nor a name of gRPC's (`unix:`, `dns:`, `ipv4:`, `ipv6:`).
    """
    if re.match(r"(unix|unix-abstract|dns|ipv4|ipv6):.", target) and not re.fullmatch(r"\w+:\d+", target):
        return
    found = re.fullmatch(r"(?:https?|grpcs?)://([^/]+)/*", target)
    if found:
        raise ValueError(f"{target!r} is a URL, not host:port; leave out what is around it: {found[1]}")
    host, _, port = target.rpartition(":")
    bare = re.fullmatch(r"\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+", host)
    if not bare or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{target!r} is not host:port, such as 127.0.0.1:8080")


def open_channel(target: str, *, keepalive_s: float, own_connection: bool = False) -> grpc.aio.Channel:
    """An insecure channel to `host:port`.

    Args:
        target: where the service, or the proxy before it, listens.
        keepalive_s: a silent connection is probed after this many seconds, while calls are open on it.
        own_connection: share no connection with other channels of this process; a worker that reconnects
            must not be given the connection of a server that is going.

    Raises:
        ValueError: the target is none; see check_target.
    """
    check_target(target)
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
