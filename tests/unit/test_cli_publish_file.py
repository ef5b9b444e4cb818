"""`millstream publish --file`: each line once, whatever comes between."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.unit.scripted import Abort, ScriptedService, start
from typer.testing import CliRunner, Result

from millstream.cli import publish_file
from millstream.cli.app import app
from millstream.cli.publish_progress import Standing
from millstream.sdk.payload import from_struct
from millstream.v1 import artifact_service_pb2 as wire

Run = Callable[..., Result]
RPC = "ArtifactService/PublishBatch"


class Shop:
    """Takes artifacts as the service does: one for each key."""

    def __init__(self) -> None:
        self.taken: dict[str, Any] = {}
        self.refused: dict[str, str] = {}
        self.aborts: dict[int, Abort] = {}
        self.calls = 0

    def __call__(self, request: wire.PublishBatchRequest) -> wire.PublishBatchResponse | Abort:
        self.calls += 1
        if self.calls in self.aborts:
            return self.aborts[self.calls]
        response = wire.PublishBatchResponse()
        for index, item in enumerate(request.artifacts):
            result = response.results.add(index=index)
            if item.type in self.refused:
                result.status, result.error.code, result.error.message = "failed", self.refused[item.type], "refused"
                continue
            result.status = "duplicate" if item.idempotency_key in self.taken else "accepted"
            self.taken.setdefault(item.idempotency_key, item)
            result.artifact_id, result.correlation_id = f"a{item.idempotency_key}", "c"
        return response

    @property
    def numbers(self) -> list[float]:
        """The numbers in what was taken."""
        return sorted(from_struct(item.payload)["n"] for item in self.taken.values())


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def run(shop: Shop) -> Iterator[Run]:
    service = ScriptedService()
    service.answer(RPC, shop)
    stop = start(service)

    def invoke(*args: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, ["publish", *args], input=stdin, env={"MILLSTREAM_TARGET": service.target})

    yield invoke
    stop()


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """Ten lines."""
    file = tmp_path / "orders.ndjson"
    file.write_text("".join(json.dumps({"type": "Order", "payload": {"n": n}}) + "\n" for n in range(10)))
    return file


def results_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{file}.results").read_text().splitlines()]


def test_each_line_is_published_and_has_a_result(run: Run, shop: Shop, orders: Path) -> None:
    """FL-11: in the order of the lines."""
    result = run("--file", str(orders), "--batch-size", "3")
    assert (result.exit_code, result.stdout.splitlines()[-1].split(";")[0]) == (0, "10 published, 0 failed of 10 lines")
    assert shop.numbers == [*range(10)]
    assert [(each["line"], each["status"]) for each in results_of(orders)] == [(n, "accepted") for n in range(1, 11)]
    assert all(each["artifact_id"] and each["correlation_id"] for each in results_of(orders))


def test_what_is_published_is_not_published_again_unless_asked(run: Run, shop: Shop, orders: Path) -> None:
    """FL-8: a finished file is finished; --restart is another publication of it."""
    run("--file", str(orders))
    calls = shop.calls
    again = run("--file", str(orders))
    assert (again.exit_code, shop.calls) == (0, calls)
    assert "all 10 lines are published" in again.stderr
    run("--file", str(orders), "--restart")
    assert len(shop.taken) == 20


def test_an_interrupted_file_goes_on_where_it_stopped(run: Run, shop: Shop, orders: Path) -> None:
    """FL-8: nothing twice, nothing left out, one result a line."""
    shop.aborts = {3: Abort(grpc.StatusCode.PERMISSION_DENIED, "no more", "FORBIDDEN")}
    first = run("--file", str(orders), "--batch-size", "3", "--parallel", "1")
    assert first.exit_code == 1
    assert len(shop.taken) == 6
    second = run("--file", str(orders), "--batch-size", "4", "--json")
    assert json.loads(second.stdout)["lines"] == 4
    assert shop.numbers == [*range(10)]
    assert [each["line"] for each in results_of(orders)] == [*range(1, 11)]


def test_what_was_sent_and_not_noted_is_found_again_by_its_key(run: Run, shop: Shop, orders: Path) -> None:
    """FL-8: the progress of a moment before, as kill -9 leaves it; results behind it are cut off."""
    run("--file", str(orders), "--batch-size", "5", "--parallel", "1")
    progress = Path(f"{orders}.progress")
    kept = json.loads(progress.read_text())
    fresh = Standing(None)
    kept |= {"line": 0, "offset": 0, "results_at": 0, "ended": False, "digest": fresh.digest.hexdigest()}
    progress.write_text(json.dumps(kept))
    result = run("--file", str(orders), "--json")
    assert json.loads(result.stdout) | {"results": ""} == {
        "lines": 10, "published": 0, "duplicates": 10, "failed": 0, "results": "",
    }  # fmt: skip
    assert len(shop.taken) == 10
    assert len(results_of(orders)) == 10


def test_lines_at_fault_are_told_and_stop_nothing(run: Run, shop: Shop, tmp_path: Path) -> None:
    """FL-10, FL-11: by number and reason; the others are published, and the exit code tells."""
    file = tmp_path / "mixed"
    shop.refused = {"Unknown": "NOT_FOUND"}
    lines = [
        "{",
        "[]",
        '{"payload": {}}',
        '{"type": "Order", "paylaod": {}}',
        '{"type": "Unknown"}',
        "",
        '{"type": "Order", "payload": 5}',
        '{"type": "Order", "tags": "x"}',
        '{"type": "Order", "payload": {"n": 1}}',
    ]
    file.write_text("\n".join(lines))
    result = run("--file", str(file))
    assert result.exit_code == 1
    assert shop.numbers == [1]
    found = {each["line"]: each for each in results_of(file)}
    assert sorted(found) == [1, 2, 3, 4, 5, 7, 8, 9]
    assert {line: each["error"]["code"] for line, each in found.items() if each["status"] == "failed"} == {
        **dict.fromkeys([1, 2, 3, 4, 7, 8], "BAD_LINE"), 5: "NOT_FOUND",
    }  # fmt: skip
    assert "paylaod" in found[4]["error"]["message"]
    assert "line 5: NOT_FOUND: refused" in result.stdout


def test_a_type_for_all_lines_makes_each_a_payload(run: Run, shop: Shop) -> None:
    """FL-11: from stdin, too, which leaves nothing behind."""
    result = run("Order", "--file", "-", stdin='{"n": 1}\n{"n": 2}\n')
    assert (result.exit_code, shop.numbers) == (0, [1, 2])
    assert {item.type for item in shop.taken.values()} == {"Order"}


def test_all_that_an_artifact_may_say_is_taken(run: Run, shop: Shop, tmp_path: Path) -> None:
    """FL-1: tags, key, correlation, visibility."""
    file = tmp_path / "one"
    visibility = {"kind": "After", "ttl": "30s", "then": {"kind": "Private", "agents": ["a"]}}
    said = {"type": "Order", "tags": ["red"], "partition_key": "k", "correlation_id": "c", "visibility": visibility}
    file.write_text(json.dumps(said))
    assert run("--file", str(file)).exit_code == 0
    (item,) = shop.taken.values()
    assert (list(item.tags), item.partition_key, item.correlation_id) == (["red"], "k", "c")
    assert (item.visibility.ttl.seconds, list(item.visibility.then.agents)) == (30, ["a"])


def test_a_service_that_is_away_is_waited_for(
    run: Run, shop: Shop, orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FL-8: as long as it takes; what it says of when to come again holds."""
    monkeypatch.setattr(publish_file, "FIRST_PAUSE_S", 0.001)
    full = Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", "RATE_LIMITED", retry_after_s=0.01)
    shop.aborts = dict.fromkeys(range(1, 8), full)
    result = run("--file", str(orders))
    assert (result.exit_code, shop.numbers) == (0, [*range(10)])
    assert "the queue is full; trying again in" in result.stderr


@pytest.mark.parametrize("change", ["other line", "shorter", "progress"])
def test_another_file_of_that_name_is_not_gone_on_with(run: Run, shop: Shop, orders: Path, change: str) -> None:
    """FL-10: it says what to do; --restart does it."""
    run("--file", str(orders))
    text = orders.read_text()
    if change == "other line":
        orders.write_text(text.replace('"n": 3', '"n": 7'))
    elif change == "shorter":
        orders.write_text(text[:50])
    else:
        Path(f"{orders}.progress").write_text("{}")
    kept = json.loads(Path(f"{orders}.progress").read_text())
    if kept:
        Path(f"{orders}.progress").write_text(json.dumps(kept | {"ended": False}))
    result = run("--file", str(orders))
    assert (result.exit_code, "--restart" in result.stderr) == (2, True)
    assert len(shop.taken) == 10


@pytest.mark.parametrize(
    "arguments", [("--file", "/no/such/file"), ("--file", "x", "--sync"), ("--file", "x", "--key", "k"), ()]
)
def test_what_does_not_go_together_is_usage(run: Run, shop: Shop, arguments: tuple[str, ...]) -> None:
    """FL-10: exit code 2, and nothing is sent."""
    assert run(*arguments).exit_code == 2
    assert shop.calls == 0
