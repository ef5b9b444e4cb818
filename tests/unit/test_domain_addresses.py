"""Where the server may call: what is not public is out of reach, however it is written, unless it was allowed."""

from ipaddress import ip_network

import pytest

from millstream.domain.addresses import LOOPBACK, address_fault, url_fault

PRIVATE = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    "url",
    [
        "https://agents.example.com",
        "http://agents.example.com:8080/a/b?c=d",
        "https://8.8.8.8/rpc",
        "https://[2606:4700:4700::1111]/",
        "https://agents.example.com./",
    ],
)
def test_a_public_address_is_called(url: str) -> None:
    """WM-1: by name or by number."""
    assert url_fault(url, ()) == ""


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1.2.3",
        "localhost",
        "LOCALHOST.",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fd12:3456::1]",
        "[ff02::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a00:1]",
        "[64:ff9b::a00:1]",
        "[2002:7f00:1::]",
        "[2001:0:a00:1::1]",
    ],
)
def test_what_is_not_public_is_refused(host: str) -> None:
    """WM-1: loopback, private, link-local, shared, reserved, multicast, and each of them within IPv6."""
    assert "agent_networks" in url_fault(f"http://{host}:8080/", ())


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "127.0.0.0x1", "1.2.3.4.5"])
def test_a_number_that_hides_its_address_is_refused(host: str) -> None:
    """WM-1: resolvers take more ways to write an address than people read."""
    assert "in full" in url_fault(f"http://{host}/", LOOPBACK)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("", "must begin with http"),
        ("agents.example.com", "must begin with http"),
        ("ftp://agents.example.com", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("http://", "names no host"),
        ("http://user:secret@agents.example.com", "holds credentials"),
        ("http://secret@agents.example.com", "holds credentials"),
        ("http://agents.example.com/#part", "has a fragment"),
        ("http://agents.example.com:0/", "port 0"),
        ("http://agents.example.com:99999/", "is no URL"),
        ("http://agents.example.com/a b", "has a space"),
        ("http://agents.example.com\\@10.0.0.1/", "a backslash"),
        ("http://agents.example.com/\r\nhost: x", "control character"),
        ("http://[::1", "is no URL"),
        ("http://agents.example.com/" + "a" * 2000, "at most 2000"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(url: str, fault: str) -> None:
    """WM-10: what is wrong, in words."""
    assert fault in url_fault(url, ())


def test_what_was_allowed_is_called() -> None:
    """WM-1: a network of the settings, and nothing beside it."""
    assert url_fault("http://10.1.2.3/", PRIVATE) == ""
    assert url_fault("http://[fd12::1]/", PRIVATE) == ""
    assert url_fault("http://[::ffff:10.1.2.3]/", PRIVATE) == ""
    assert url_fault("http://11.1.2.3/", PRIVATE) == ""
    assert "not public" in url_fault("http://192.168.0.1/", PRIVATE)
    assert url_fault("http://localhost:80/", LOOPBACK) == ""
    assert "not public" in address_fault("127.0.0.1", PRIVATE)
    assert "is no address" in address_fault("agents.example.com", PRIVATE)


def test_an_address_that_stands_for_a_private_one_needs_both_allowed() -> None:
    """WM-1: NAT64 and 6to4 lead to the IPv4 address that they hold."""
    assert address_fault("64:ff9b::808:808", ()) == ""
    assert address_fault("64:ff9b::a00:1", PRIVATE) == ""
    assert "not public" in address_fault("64:ff9b::c0a8:1", PRIVATE)
