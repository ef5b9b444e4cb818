"""The commands that look after an installation: config, envoy-config, migrate, doctor."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.proxy import free_port

from millstream.store import migrations
from millstream.store.embedded import EmbeddedPostgres


async def run(*arguments: str, cwd: Path | None = None, **environment: str) -> tuple[int, str, str]:
    """Run the command line; return its exit code, output and errors."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MILLSTREAM_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "millstream.cli", *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd, env=inherited | environment,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[EmbeddedPostgres]:
    """An empty database."""
    async with EmbeddedPostgres(ephemeral=True) as running:
        yield running


async def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("port = 1111\nhost = '127.0.0.9'\nlease_s = 5\n")
    code, output, _ = await run(
        "config", "--json", "--config", str(file), "--set", "port=3333", MILLSTREAM_PORT="2222", MILLSTREAM_LEASE_S="7"
    )
    settings = json.loads(output)
    assert code == 0
    assert (settings["port"], settings["lease_s"], settings["host"]) == (3333, 7, "127.0.0.9")


async def test_secrets_are_masked() -> None:
    _, output, _ = await run(
        "config", MILLSTREAM_DATABASE_URL="postgresql://me:hunter2@db/x", MILLSTREAM_PROXY_TOKEN="hunter2"
    )
    assert "hunter2" not in output
    assert "proxy_token" in output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--set", "port=many"), "port: must be a whole number"),
        (("--set", "port=99999"), "port: must be at most 65535"),
        (("--set", "log_level=loud"), "log_level: must be one of 'debug', 'info', 'warning' or 'error'"),
        (("--set", "owner_path=maybe"), "owner_path: must be true or false"),
        (("--set", "nope=1"), "nope: there is no such setting; `millstream config` lists all"),
        (("--set", "prot=1"), "prot: there is no such setting; did you mean port? `millstream config` lists all"),
        (("--set", 'api_keys=[{"id": "a", "roles": ["viewer"], "shaw256": "x"}]'), "did you mean sha256?"),
        (("--config", "/does/not/exist"), "there is no file /does/not/exist"),
    ],
)
async def test_a_wrong_setting_is_one_line_and_exit_code_2(arguments: tuple[str, ...], line: str) -> None:
    code, output, errors = await run("config", *arguments)
    assert (code, output) == (2, "")
    assert line in errors
    assert len(errors.splitlines()) == 1


async def test_a_variable_that_is_no_json_is_named() -> None:
    code, output, errors = await run("config", MILLSTREAM_API_KEYS="hunter2")
    assert (code, output) == (2, "")
    assert errors == "millstream: MILLSTREAM_API_KEYS: must be JSON, as `millstream config --json` shows it\n"


async def test_a_server_names_all_that_it_cannot_do_without_at_once(tmp_path: Path) -> None:
    code, output, errors = await run("serve", cwd=tmp_path)
    assert (code, output, len(errors.splitlines())) == (2, "", 1)
    assert all(text in errors for text in ("database_url (postgresql://", "api_keys", "--set", "millstream dev"))
    code, _, errors = await run("serve", cwd=tmp_path, MILLSTREAM_AUTH_MODE="developer")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "database_url" in errors
    assert "api_keys" not in errors


async def test_a_server_whose_database_is_away_ends_with_one_line(tmp_path: Path) -> None:
    code, _, errors = await run(
        "serve", cwd=tmp_path, MILLSTREAM_AUTH_MODE="developer",
        MILLSTREAM_DATABASE_URL="postgresql://nobody@127.0.0.1:1/x",
    )  # fmt: skip
    assert code == 1
    assert len(errors.splitlines()) == 1
    assert json.loads(errors)["reason"].startswith("cannot reach the database: ")


async def test_the_proxys_configuration_names_every_server() -> None:
    code, output, _ = await run("envoy-config", "--server", "10.0.0.1:7080", "--server", "10.0.0.2:7081")
    assert code == 0
    assert json.loads(output)
    assert "10.0.0.1" in output
    assert "7081" in output


async def test_the_proxy_takes_requests_as_large_as_its_servers_do() -> None:
    arguments = ("envoy-config", "--server", "10.0.0.1:7080")
    _, output, _ = await run(*arguments, MILLSTREAM_MAX_REQUEST_BYTES="9000000")
    assert "the request body is over 9000000 bytes" in output
    _, output, _ = await run(*arguments)
    assert "the request body is over 4194304 bytes" in output


@pytest.mark.parametrize("address", ["10.0.0.1", ":80", "a:b", "a:70000"])
async def test_an_address_that_is_none_is_named(address: str) -> None:
    code, _, errors = await run("envoy-config", "--server", address)
    assert code == 2
    assert "is not HOST:PORT" in errors


async def test_migrations_go_up_and_down(server: EmbeddedPostgres) -> None:
    url = server.url
    assert (await run("migrate", "current", MILLSTREAM_DATABASE_URL=url))[1].startswith("not migrated")
    code, output, errors = await run("migrate", "up", "--database-url", url)
    assert (code, output) == (0, f"{migrations.head()} (newest)\n"), errors
    assert (await run("migrate", "down", "base", "--database-url", url))[1].startswith("not migrated")


async def test_a_database_that_does_not_answer_is_one_line() -> None:
    code, _, errors = await run("migrate", "up", "--database-url", "postgresql://nobody@127.0.0.1:1/x")
    assert code == 1
    assert "cannot reach the database" in errors
    assert len(errors.splitlines()) == 1


async def test_the_doctor_names_what_is_wrong_and_how_to_mend_it(server: EmbeddedPostgres, tmp_path: Path) -> None:
    code, output, _ = await run(
        "doctor", "--data-dir", str(tmp_path), "--port", "1", MILLSTREAM_DATABASE_URL=server.url,
        MILLSTREAM_ENVOY_BIN="/does/not/exist", COLUMNS="200",
    )  # fmt: skip
    assert code == 1
    assert "cannot run Envoy at /does/not/exist" in output
    assert "millstream migrate up" in output
    assert "PostgreSQL 18" in output


async def test_the_doctor_speaks_json_to_machines(tmp_path: Path) -> None:
    """One object a check, the exit code tells whether one failed, and faults come with what to do."""
    free = f"{free_port()}"
    code, output, errors = await run(
        "doctor", "--json", "--data-dir", str(tmp_path), "--port", free, "--grpc-port", free, no_proxy="*"
    )
    findings = {each["check"]: each for each in json.loads(output)}
    assert (code, errors) == (0, ""), output
    assert {"Python", "libraries", "contract", "Envoy", "disk space", "ports", "database"} <= set(findings)
    assert all(set(each) == {"check", "status", "detail", "fix"} for each in findings.values())
    assert {each["status"] for each in findings.values()} == {"ok", "skipped"}
    code, output, _ = await run(
        "doctor", "--json", "--data-dir", str(tmp_path), "--port", free, "--grpc-port", free, no_proxy="*",
        MILLSTREAM_DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/d",
    )  # fmt: skip
    assert code == 1
    assert "hunter2" not in output
    faults = [each for each in json.loads(output) if each["status"] == "fail"]
    assert [each["check"] for each in faults] == ["database"]
    assert faults[0]["fix"]
