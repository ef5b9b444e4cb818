"""`millstream publish --file` against the real service: killed in its midst, and gone on with."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import asyncpg
import httpx
from tests.e2e.answers import check_ok
from tests.e2e.stack import READY_S, Stack
from tests.e2e.test_commands import run

LINES = 20_000


async def test_a_file_killed_in_its_midst_is_published_once(
    stack: Stack, rest: httpx.AsyncClient, database: asyncpg.Connection[asyncpg.Record], tmp_path: Path
) -> None:
    """FL-8, FL-11: kill -9 of the command, then the same command again: each line once, one result each."""
    name = f"Line{uuid.uuid4().hex[:8]}"
    check_ok(await rest.post("/api/v1/artifact-types", json={"name": name}), 201)
    file = tmp_path / "lines.ndjson"
    file.write_text("".join(f'{{"type": "{name}", "payload": {{"n": {n}}}}}\n' for n in range(LINES)))
    progress = Path(f"{file}.progress")

    async def published() -> int:
        return int(await database.fetchval("SELECT count(*) FROM artifact WHERE type = $1", name))

    first = await stack.command("publish", "--file", str(file))
    async with asyncio.timeout(READY_S):
        while True:
            if progress.exists() and json.loads(progress.read_text())["line"] > LINES // 10:
                break
            await asyncio.sleep(0.005)
    await first.kill()
    assert 0 < await published() < LINES
    code, output, errors = await run("publish", "--file", str(file), "--target", stack.target, "--json")
    assert (code, errors) == (0, "")
    told = json.loads(output)
    assert told["failed"] == 0
    assert told["lines_now"] < told["lines"] == LINES
    assert await published() == LINES
    results = [json.loads(line) for line in Path(f"{file}.results").read_text().splitlines()]
    assert [each["line"] for each in results] == [*range(1, LINES + 1)]
    assert len({each["artifact_id"] for each in results}) == LINES


async def test_lines_that_failed_are_mended_and_published_once(
    stack: Stack, rest: httpx.AsyncClient, database: asyncpg.Connection[asyncpg.Record], tmp_path: Path
) -> None:
    """FL-8, FL-10: the service's own refusal, named by the line; then --retry-failed, and a run for nothing."""
    name = f"Line{uuid.uuid4().hex[:8]}"
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    check_ok(await rest.post("/api/v1/artifact-types", json={"name": name, "schema": schema}), 201)
    file = tmp_path / "lines.ndjson"
    lines = [json.dumps({"n": n}) for n in range(20)]
    file.write_text("\n".join([*lines[:7], '{"n": "seven"}', *lines[8:]]) + "\n")
    command = ("publish", name, "--file", str(file), "--target", stack.target)
    code, output, errors = await run(*command)
    assert (code, "19 published, 1 failed of 20 lines" in output) == (1, True), output + errors
    (failed,) = [
        each for each in map(json.loads, Path(f"{file}.results").read_text().splitlines()) if each["status"] == "failed"
    ]
    assert (failed["line"], failed["error"]["details"][0]["field"]) == (8, "payload.n")
    assert "artifacts[" not in failed["error"]["message"]
    file.write_text("\n".join(lines) + "\n")
    code, output, errors = await run(*command, "--retry-failed")
    assert (code, "20 published, 0 failed of 20 lines" in output) == (0, True), output + errors
    code, _, errors = await run(*command)
    assert (code, f"all 20 lines were published to {stack.target}" in errors) == (0, True), errors
    assert await database.fetchval("SELECT count(*) FROM artifact WHERE type = $1", name) == 20
