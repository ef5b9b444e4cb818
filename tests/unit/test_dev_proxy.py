"""The proxy of `millstream dev` keeps to the limits of the servers behind it."""

import sys
from pathlib import Path

import pytest

from millstream.cli import programs


@pytest.mark.parametrize(("environment", "limit"), [("9000000", 9_000_000), (None, 4_194_304)])
def test_the_proxy_takes_requests_as_large_as_the_servers_do(
    environment: str | None, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLSTREAM_ENVOY_BIN", sys.executable)  # it is not started
    monkeypatch.delenv("MILLSTREAM_MAX_REQUEST_BYTES", raising=False)
    if environment is not None:
        monkeypatch.setenv("MILLSTREAM_MAX_REQUEST_BYTES", environment)
    programs.envoy(programs.Layout(8080, (7080,), "", tmp_path, "t" * 43))
    assert f"the request body is over {limit} bytes" in (tmp_path / "envoy.yaml").read_text()
