"""The way out: HTTP to addresses that tenants have named, kept to where the server may call.

A name is resolved once, where the connection is made, and the connection goes to the address that was judged; so a name
that leads elsewhere a moment later is no way around. Redirects are never followed, proxies of the environment not
used, cookies not kept, compressed answers not taken, and every answer is bounded.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpcore
import httpx

from millstream.application.call_ports import Credential
from millstream.domain.addresses import SETTING, Network, address_fault, url_fault

CONNECT_S: Final = 10.0
"""To resolve a name and to connect, each."""
WRITE_S: Final = 60.0
IDLE_S: Final = 30.0
"""How long a connection is kept for the next call."""
CONNECTIONS_MOST: Final = 1024
IDLE_MOST: Final = 64

_KEEPALIVE: Final[list[tuple[int, int, int]]] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
]
"""An agent may think for hours, so a silent connection is no broken one; only the other side's system can tell."""


class Refused(httpx.TransportError):
    """The server does not call there."""


class Unacceptable(httpx.TransportError):
    """The answer is not one that is taken: too large, or compressed."""


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to where the server may call."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (the base's)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises Refused, and ConnectError or ConnectTimeout where none of the name's addresses answers."""
        addresses = await self._resolved(host, port)
        # All of them: which one is tried would be the name's owner's choice.
        for address in addresses:
            if address_fault(address, self._networks):
                # Which one is nobody's business: names of the inside may be known to the server alone.
                raise Refused(
                    f"{host} leads to an address that is not public: the server calls it only if its setting {SETTING}"
                    " allows it"
                )
        error: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
        raise error

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109  (the base's)
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises Refused."""
        raise Refused("sockets of this machine are not called")

    async def sleep(self, seconds: float) -> None:
        """Wait, between attempts to connect."""
        await asyncio.sleep(seconds)

    async def _resolved(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} could not be resolved in {CONNECT_S:g} s") from None
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} could not be resolved: {error}") from None
        return [*dict.fromkeys(str(each[4][0]) for each in found)]


class GuardedTransport(httpx.AsyncBaseTransport):
    """Requests to where the server may call, with bounded answers.

    Args:
        networks: Networks that are not public where it may call.
        answer_most: Largest answer, bytes; of one that is streamed, all of it.
    """

    def __init__(self, networks: Sequence[Network], answer_most: int) -> None:
        self._networks = networks
        self._answer_most = answer_most
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False),
            max_connections=CONNECTIONS_MOST,
            max_keepalive_connections=IDLE_MOST,
            keepalive_expiry=IDLE_S,
            network_backend=GuardedNetwork(networks),
            socket_options=_KEEPALIVE,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises Refused, Unacceptable, and what httpx raises of a connection."""
        if fault := url_fault(str(request.url), self._networks):
            raise Refused(f"{shown(request.url)} {fault}")
        url = request.url
        sent = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            answer = await self._pool.handle_async_request(sent)
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _as_httpx(error) from error
        body = _Bounded(answer, self._answer_most, shown(url))
        response = httpx.Response(answer.status, headers=answer.headers, stream=body, extensions=answer.extensions)
        fault = self._unacceptable(response)
        if fault:
            await response.aclose()
            raise Unacceptable(f"{shown(url)} {fault}")
        return response

    async def aclose(self) -> None:
        """End all connections."""
        await self._pool.aclose()

    def _unacceptable(self, response: httpx.Response) -> str:
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            return f"answered compressed ({encoding}), though it was asked not to"
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._answer_most:
            return _too_large(self._answer_most)
        return ""


class _Bounded(httpx.AsyncByteStream):
    """An answer's body, up to its bound."""

    def __init__(self, answer: httpcore.Response, most: int, where: str) -> None:
        self._answer = answer
        self._most = most
        self._where = where

    async def __aiter__(self) -> AsyncIterator[bytes]:
        taken = 0
        try:
            async for piece in self._answer.aiter_stream():
                taken += len(piece)
                if taken > self._most:
                    raise Unacceptable(f"{self._where} {_too_large(self._most)}")
                yield piece
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _as_httpx(error) from error

    async def aclose(self) -> None:
        await self._answer.aclose()


class Clients:
    """Clients for calls to agents, which share their connections. Whoever waits for an answer bounds how long."""

    def __init__(self, networks: Sequence[Network], answer_most: int, credentials: Sequence[Credential]) -> None:
        self._transport = GuardedTransport(networks, answer_most)
        self._plain = _client(self._transport, [])
        tenants = {each.tenant for each in credentials}
        self._own = {
            tenant: _client(self._transport, [each for each in credentials if each.tenant == tenant])
            for tenant in tenants
        }

    def of(self, tenant: str) -> httpx.AsyncClient:
        """The one that has a tenant's credentials."""
        return self._own.get(tenant, self._plain)

    async def aclose(self) -> None:
        """End all connections."""
        await self._transport.aclose()


def _client(transport: httpx.AsyncBaseTransport, credentials: Sequence[Credential]) -> httpx.AsyncClient:
    known = [(_origin(httpx.URL(each.origin)), each) for each in credentials]

    async def identify(request: httpx.Request) -> None:
        origin = _origin(request.url)
        for where, each in known:
            if where == origin:
                request.headers[each.header] = each.value

    return httpx.AsyncClient(
        transport=transport,
        event_hooks={"request": [identify]},
        follow_redirects=False,
        trust_env=False,
        timeout=httpx.Timeout(None, connect=CONNECT_S, write=WRITE_S),
        headers={"accept-encoding": "identity", "user-agent": "millstream"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


def shown(url: httpx.URL) -> str:
    """An address for messages: what comes after the path may be secret."""
    port = f":{url.port}" if url.port else ""
    return f"{url.scheme}://{url.host}{port}{url.path}"


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _too_large(most: int) -> str:
    return f"answered with more than {most:,} bytes (the server's setting agent_answer_bytes)"


def _as_httpx(error: Exception) -> httpx.TransportError:
    """The error of httpx that has the name of httpcore's."""
    kind = getattr(httpx, type(error).__name__, httpx.NetworkError)
    text = str(error) or type(error).__name__
    found = kind(text)
    return found if isinstance(found, httpx.TransportError) else httpx.NetworkError(text)
