"""The configuration: where it comes from, what it refuses, and what it shows."""

from pathlib import Path

import pytest

from millstream import bootstrap
from millstream.config import ConfigError, Settings, is_loopback, load

_HASH = "0" * 64


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MILLSTREAM_{name.upper()}", raising=False)
    monkeypatch.delenv("MILLSTREAM_CONFIG", raising=False)


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "millstream.toml").write_text("port = 1\nlease_s = 11\npool_size = 3\n")
    monkeypatch.setenv("MILLSTREAM_PORT", "2")
    monkeypatch.setenv("MILLSTREAM_LEASE_S", "12")
    settings = load(port=3, host=None)
    assert (settings.port, settings.lease_s, settings.pool_size, settings.host) == (3, 12.0, 3, "127.0.0.1")


def test_the_file_may_have_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text("max_depth = 7\n")
    monkeypatch.setenv("MILLSTREAM_CONFIG", str(tmp_path / "other.toml"))
    assert load().max_depth == 7
    monkeypatch.setenv("MILLSTREAM_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError, match="there is no file"):
        load()


def test_keys_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_API_KEYS", f'[{{"id":"a","sha256":"{_HASH}","roles":["viewer"]}}]')
    assert load().api_keys[0].roles == ["viewer"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("port = 99999", "port: "),
        ("prot = 1", "prot: "),
        ("auth_mode = 'developer'\nhost = '0.0.0.0'", "must be loopback"),
        ("auth_mode = 'api_keys'", "needs api_keys"),
        ("idempotency_ttl_s = 9999999", "idempotency_ttl_s: "),
        ("database_url = 'mysql://x'", "must begin with postgresql://"),
        ("[[api_keys]]\nid = 'a'\nroles = ['viewer']", r"api_keys\.0\.sha256: "),
        ("port = ", "millstream.toml: "),
        ("agent_networks = ['10.0.0.1/8']", "agent_networks: '10.0.0.1/8' is no network, such as 10.0.0.0/8"),
        (
            "[[agent_credentials]]\norigin = 'https://a.example/b'\nvalue = 'x'",
            r"agent_credentials\.0\.origin: must be",
        ),
        ("[[agent_credentials]]\norigin = 'https://a.example'\nvalue = \"x\\ny\"", "value: must be printable ASCII"),
        ("[[agent_credentials]]\norigin = 'https://a.example'\nvalu = 'x'", "did you mean value"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "millstream.toml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=why) as raised:
        load()
    assert "\n" not in str(raised.value)


def test_secrets_are_not_shown() -> None:
    key = {"id": "a", "sha256": _HASH, "roles": ["viewer"]}
    known = {"origin": "https://a.example", "value": "Bearer unseen"}
    settings = load(
        database_url="postgresql://u:topsecret@h/d", proxy_token="hidden", api_keys=[key], agent_credentials=[known]
    )
    shown = str(settings.effective()) + repr(settings)
    assert not any(secret in shown for secret in ("topsecret", "hidden", _HASH, "unseen"))
    assert settings.effective()["port"] == 9090


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("unix:x.sock", True), ("0.0.0.0", False), ("h", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_without_an_authenticator_there_is_no_start() -> None:
    """WM-9"""
    with pytest.raises(ConfigError, match="nobody could call"):
        bootstrap.authenticator_of(load())
    key = {"id": "a", "sha256": "odd", "roles": ["viewer"]}
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        bootstrap.authenticator_of(load(api_keys=[key]))
    assert bootstrap.authenticator_of(load(auth_mode="developer")).authenticate({}).name == "developer"


def test_addresses() -> None:
    assert bootstrap.address_of(load(port=1)) == "127.0.0.1:1"
    assert bootstrap.address_of(load(host="::1", port=1)) == "[::1]:1"
    assert bootstrap.address_of(load(host="unix:a.sock")) == "unix:a.sock"
