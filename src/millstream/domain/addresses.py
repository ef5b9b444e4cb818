"""Which addresses the server may call: those of the public internet, and the networks that its settings allow.

What a tenant registers is called from inside the operator's network, so everything else there (databases, metadata
services, neighbours) is out of reach unless it was allowed.
"""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias
from urllib.parse import urlsplit

Network: TypeAlias = IPv4Network | IPv6Network
Address: TypeAlias = IPv4Address | IPv6Address

SCHEMES = ("http", "https")
SETTING = "agent_networks"
"""Name of the setting that allows more."""
URL_MOST = 2000

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
"""This machine."""

_NAT64 = ip_network("64:ff9b::/96")
_LOCAL_NAMES = ("localhost", "localhost.localdomain")


def url_fault(url: str, networks: Sequence[Network]) -> str:
    """What is wrong with an address that the server is to call, in words for people; "" if nothing. A name is judged
    when it is resolved, but for this machine's own."""
    if len(url) > URL_MOST:
        return f"has {len(url)} characters; at most {URL_MOST} are taken"
    if any(char.isspace() or not char.isprintable() or char == "\\" for char in url):
        return "has a space, a backslash or a control character; write it percent-encoded"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        return f"is no URL: {error}"
    if parts.scheme not in SCHEMES:
        return "must begin with http:// or https://"
    if not host or port == 0:
        return "names no host" if not host else "has the port 0, at which nothing can be called"
    if parts.username is not None or parts.password is not None:
        return "holds credentials, which would be shown to who reads the agent; leave them out"
    if parts.fragment:
        return "has a fragment (#...), which is never sent; leave it out"
    return host_fault(host, networks)


def host_fault(host: str, networks: Sequence[Network]) -> str:
    """What is wrong with the host of an address as it is written; "" if nothing, or if it has to be resolved first."""
    if host.rstrip(".").lower() in _LOCAL_NAMES:
        return address_fault("127.0.0.1", networks)
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        # 2130706433, 0x7f.1 and the like are addresses to the resolver, and hide which.
        last = host.rstrip(".").rpartition(".")[2]
        return "must write an address in full, such as 192.0.2.1" if _numeric(last) else ""
    return address_fault(str(address), networks)


def address_fault(text: str, networks: Sequence[Network]) -> str:
    """What is wrong with calling an IP address; "" if nothing."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return f"{text!r} is no address"
    if all(_is_public(each) or _is_allowed(each, networks) for each in _meant(address)):
        return ""
    return f"leads to {address}, which is not public: the server calls it only if its setting {SETTING} allows it"


def _numeric(label: str) -> bool:
    return label.isdigit() or label.lower().startswith("0x")


def _meant(address: Address) -> Iterator[Address]:
    """An address, and the IPv4 address that it stands for by one of the translations."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            # The very same place, so that it is judged alone.
            yield address.ipv4_mapped
            return
        if address.sixtofour is not None:
            yield address.sixtofour
        if address.teredo is not None:
            yield from address.teredo
        if address in _NAT64:
            yield IPv4Address(int(address) & 0xFFFFFFFF)
            return
    yield address


def _is_public(address: Address) -> bool:
    return address.is_global and not address.is_multicast and not address.is_reserved


def _is_allowed(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)
