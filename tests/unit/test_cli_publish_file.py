"""`millstream publish --file`: each line once, whatever comes between."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.unit.scripted import Abort, ScriptedService, start
from typer.testing import CliRunner, Result

from millstream.cli import publish_file
from millstream.cli.app import app
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
        self.faults: dict[int, tuple[str, str]] = {}
        self.deprecated: dict[str, str] = {}
        self.calls = 0
        self.before: Callable[[], object] = lambda: None

    def __call__(self, request: wire.PublishBatchRequest) -> wire.PublishBatchResponse | Abort:
        self.calls += 1
        self.before()
        if self.calls in self.aborts:
            return self.aborts[self.calls]
        response = wire.PublishBatchResponse()
        for index, item in enumerate(request.artifacts):
            result = response.results.add(index=index)
            if item.type in self.refused:
                result.status, result.error.code, result.error.message = "failed", self.refused[item.type], "refused"
                continue
            number = from_struct(item.payload).get("n")
            if number in self.faults:
                field, message = self.faults[number]
                result.status, result.error.code = "failed", "VALIDATION_ERROR"
                result.error.message = f"artifacts[{index}].{field}: {message}"
                result.error.details.add(field=f"artifacts[{index}].{field}", message=message)
                continue
            if item.type in self.deprecated:
                result.deprecation = self.deprecated[item.type]
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
    """FL-8: a finished file is finished, says where and when; --restart is another publication of it."""
    run("--file", str(orders))
    calls = shop.calls
    again = run("--file", str(orders))
    assert (again.exit_code, shop.calls) == (0, calls)
    kept = json.loads(Path(f"{orders}.progress").read_text())
    assert f"all 10 lines were published to {kept['bound']['target']} ({kept['ended_at']})" in again.stderr
    run("--file", str(orders), "--restart")
    assert len(shop.taken) == 20


def test_an_interrupted_file_goes_on_where_it_stopped(run: Run, shop: Shop, orders: Path) -> None:
    """FL-8: nothing twice, nothing left out, one result a line."""
    shop.aborts = {3: Abort(grpc.StatusCode.PERMISSION_DENIED, "no more", "FORBIDDEN")}
    first = run("--file", str(orders), "--batch-size", "3", "--parallel", "1")
    assert first.exit_code == 1
    assert len(shop.taken) == 6
    second = run("--file", str(orders), "--batch-size", "4", "--json")
    told = json.loads(second.stdout)
    assert (told["lines"], told["lines_now"], told["published"]) == (10, 4, 10)
    assert shop.numbers == [*range(10)]
    assert [each["line"] for each in results_of(orders)] == [*range(1, 11)]


def test_what_was_sent_and_not_noted_is_found_again_by_its_key(run: Run, shop: Shop, orders: Path) -> None:
    """FL-8: the progress of a moment before, as kill -9 leaves it; results behind it are cut off."""
    run("--file", str(orders), "--batch-size", "5", "--parallel", "1")
    progress = Path(f"{orders}.progress")
    kept = json.loads(progress.read_text())
    counts = {"published": 0, "duplicates": 0, "failed": 0}
    kept |= {"line": 0, "results_at": 0, "ended_at": "", "checksum": "0", "counts": counts}
    progress.write_text(json.dumps(kept))
    told = json.loads(run("--file", str(orders), "--json").stdout)
    assert {name: told[name] for name in ("lines", "lines_now", *counts)} == {
        "lines": 10, "lines_now": 10, "published": 0, "duplicates": 10, "failed": 0,
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


def test_the_keys_outlast_a_crash_before_the_first_note(run: Run, shop: Shop, orders: Path) -> None:
    """FL-8: what they are made of is kept before anything is sent."""
    kept: list[bytes] = []
    shop.before = lambda: kept.append(Path(f"{orders}.progress").read_bytes())
    run("--file", str(orders))
    Path(f"{orders}.progress").write_bytes(kept[0])
    run("--file", str(orders))
    assert len(shop.taken) == 10


@pytest.mark.parametrize("change", ["other line", "shorter", "progress", "results"])
def test_another_file_of_that_name_is_not_gone_on_with(run: Run, shop: Shop, orders: Path, change: str) -> None:
    """FL-10: it says what to do; --restart does it."""
    run("--file", str(orders))
    text = orders.read_text()
    if change == "other line":
        orders.write_text(text.replace('"n": 3', '"n": 7'))
    elif change == "shorter":
        orders.write_text(text[:50])
    elif change == "results":
        Path(f"{orders}.results").unlink()
    else:
        Path(f"{orders}.progress").write_text("{}")
    result = run("--file", str(orders))
    assert (result.exit_code, "--restart" in result.stderr) == (2, True)
    assert len(shop.taken) == 10


@pytest.mark.parametrize(
    "arguments",
    [
        ("--file", "/no/such/file"),
        ("--file", "x", "--sync"),
        ("--file", "x", "--key", "k"),
        ("--file", "-", "--retry-failed"),
        (),
    ],
)
def test_what_does_not_go_together_is_usage(run: Run, shop: Shop, arguments: tuple[str, ...]) -> None:
    """FL-10: exit code 2, and nothing is sent."""
    assert run(*arguments).exit_code == 2
    assert shop.calls == 0


# -- what a publication is bound to ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (("--target", "127.0.0.1:1"), "not to 127.0.0.1:1"),
        (("Order",), "without a TYPE, not as payloads of Order"),
        (("--api-key", "another"), "another API key"),
    ],
)
def test_a_file_published_elsewhere_or_as_something_else_is_not_done(
    run: Run, shop: Shop, orders: Path, other: tuple[str, ...], named: str
) -> None:
    """FL-10: to another target, of another type, by another caller: usage, with what to do; never "all published"."""
    run("--file", str(orders))
    result = run(*other, "--file", str(orders))
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("\u2502", " ").split())
    assert named in said
    assert "--progress" in said
    assert "--restart" in said
    assert "all 10 lines" not in result.stderr
    assert len(shop.taken) == 10


def test_a_progress_of_its_own_is_another_publication(run: Run, shop: Shop, orders: Path, tmp_path: Path) -> None:
    """FL-8: with results of its own; that of the file itself stays as it is."""
    run("--file", str(orders))
    before = results_of(orders)
    result = run("Order", "--file", str(orders), "--progress", str(tmp_path / "second"))
    assert result.exit_code == 0
    assert len(shop.taken) == 20
    assert (results_of(orders), len(results_of(tmp_path / "second"))) == (before, 10)


def test_a_line_added_to_a_finished_file_is_published(run: Run, shop: Shop, orders: Path) -> None:
    """FL-11: also where the last line had no break behind it."""
    orders.write_text(orders.read_text().rstrip("\n"))
    run("--file", str(orders))
    with orders.open("a") as file:
        file.write('\n{"type": "Order", "payload": {"n": 10}}\n')
    result = run("--file", str(orders))
    assert (result.exit_code, shop.numbers) == (0, [*range(11)])
    assert "11 published, 0 failed of 11 lines" in result.stdout
    assert "all 11 lines were published" in run("--file", str(orders)).stderr


def test_results_are_gone_on_with_where_they_are(run: Run, shop: Shop, orders: Path, tmp_path: Path) -> None:
    """FL-10: another file that is there already is not cut; neither is the file that is published."""
    other = tmp_path / "other"
    other.write_text("precious " * 1000)
    run("--file", str(orders), "--results", str(tmp_path / "first"))
    orders.write_text(orders.read_text() + "{}\n")
    result = run("--file", str(orders), "--results", str(other))
    assert result.exit_code == 2
    assert "--results" in result.stderr
    assert other.read_text() == "precious " * 1000
    text = orders.read_text()
    assert run("--file", str(orders), "--restart", "--results", str(orders)).exit_code == 2
    assert orders.read_text() == text
    assert len(shop.taken) == 10


# -- lines that failed ----------------------------------------------------------------------------------------


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Ten lines, of which the third is no JSON and the eighth of a type that there is not."""
    file = tmp_path / "faulty.ndjson"
    lines = [json.dumps({"type": "Order", "payload": {"n": n}}) for n in range(10)]
    lines[2] = "{"
    lines[7] = '{"type": "Unknown"}'
    file.write_text("\n".join(lines) + "\n")
    return file


def mend(file: Path, number: int, text: str) -> None:
    lines = file.read_text().split("\n")
    lines[number - 1] = text
    file.write_text("\n".join(lines))


def test_failed_lines_are_told_for_as_long_as_they_are(run: Run, shop: Shop, faulty: Path) -> None:
    """FL-10: by a second run of the finished file, too, and with exit code 1."""
    shop.refused = {"Unknown": "NOT_FOUND"}
    for _ in range(2):
        result = run("--file", str(faulty))
        assert result.exit_code == 1
        assert "8 published, 2 failed of 10 lines" in result.stdout
        assert "line 3: BAD_LINE" in result.stdout
        assert "line 8: NOT_FOUND" in result.stdout
        assert "--retry-failed" in result.stderr
    assert "the file was published to 127.0.0.1:" in result.stderr
    told = run("--file", str(faulty), "--json")
    assert (told.exit_code, json.loads(told.stdout)["failed"]) == (1, 2)


def test_failures_before_an_interruption_are_counted_behind_it(run: Run, shop: Shop, faulty: Path) -> None:
    """FL-8, FL-10: all of the file's, in the summary, the exit code and the lines told."""
    shop.refused = {"Unknown": "NOT_FOUND"}
    shop.aborts = {2: Abort(grpc.StatusCode.PERMISSION_DENIED, "no more", "FORBIDDEN")}
    run("--file", str(faulty), "--batch-size", "5", "--parallel", "1")
    assert len(results_of(faulty)) == 5
    result = run("--file", str(faulty))
    assert result.exit_code == 1
    assert "8 published, 2 failed of 10 lines" in result.stdout
    assert "line 3: BAD_LINE" in result.stdout


def test_mended_lines_are_published_and_no_others(run: Run, shop: Shop, faulty: Path) -> None:
    """FL-8: --retry-failed sends those that failed, as they are by now; what fails again is told again."""
    shop.refused = {"Unknown": "NOT_FOUND"}
    run("--file", str(faulty))
    mend(faulty, 3, '{"type": "Order", "payload": {"n": 2}}')
    before = len(shop.taken)
    first = run("--file", str(faulty), "--retry-failed")
    assert (first.exit_code, len(shop.taken) - before, shop.numbers[:3]) == (1, 1, [0, 1, 2])
    assert "9 published, 1 failed of 10 lines" in first.stdout
    assert [each["line"] for each in results_of(faulty)][-2:] == [3, 8]
    mend(faulty, 8, '{"type": "Order", "payload": {"n": 7}}')
    second = run("--file", str(faulty), "--retry-failed")
    assert (second.exit_code, shop.numbers) == (0, [*range(10)])
    assert "10 published, 0 failed of 10 lines" in second.stdout
    assert "all 10 lines were published" in run("--file", str(faulty)).stderr
    assert "failed" in run("--file", str(faulty), "--retry-failed").stderr
    assert len(shop.taken) == 10


def test_only_lines_that_failed_may_be_mended(run: Run, shop: Shop, faulty: Path) -> None:
    """FL-10: another one that differs, and a line too many, are told and nothing is sent."""
    run("--file", str(faulty))
    calls = shop.calls
    text = faulty.read_text()
    for changed in (text.replace('"n": 5', '"n": 55'), text.replace("{\n", "{\n{\n", 1)):
        faulty.write_text(changed)
        result = run("--file", str(faulty), "--retry-failed")
        assert (result.exit_code, shop.calls) == (2, calls)
        assert "only lines that failed" in " ".join(result.stderr.replace("\u2502", " ").split())


def test_a_line_that_got_through_is_not_published_a_second_time(run: Run, shop: Shop, faulty: Path) -> None:
    """FL-8: killed between the publication of a mended line and its note, and mended otherwise since: its key is that
    of the line, not of what stands on it."""
    run("--file", str(faulty))
    kept = [Path(f"{faulty}{end}").read_bytes() for end in (".progress", ".results")]
    mend(faulty, 3, '{"type": "Order", "payload": {"n": 2}}')
    run("--file", str(faulty), "--retry-failed")
    for end, content in zip((".progress", ".results"), kept, strict=True):
        Path(f"{faulty}{end}").write_bytes(content)
    mend(faulty, 3, '{"type": "Order", "payload": {"n": 3}}')
    taken = len(shop.taken)
    run("--file", str(faulty), "--retry-failed")
    assert len(shop.taken) == taken


def test_a_failed_line_that_is_emptied_is_given_up(run: Run, shop: Shop, faulty: Path) -> None:
    """FL-10: it fails no more, and is not published."""
    run("--file", str(faulty))
    mend(faulty, 3, "")
    result = run("--file", str(faulty), "--retry-failed", "--json")
    assert (result.exit_code, json.loads(result.stdout)["failed"]) == (0, 0)
    assert results_of(faulty)[-1] == {"line": 3, "status": "empty"}


def test_a_file_that_was_not_begun_has_no_failed_lines(run: Run, shop: Shop, orders: Path) -> None:
    """FL-10."""
    result = run("--file", str(orders), "--retry-failed")
    assert (result.exit_code, shop.calls) == (2, 0)
    assert "nothing of it is published" in result.stderr


# -- files as they come ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdin", "pipe"])
def test_what_is_no_file_is_refused_with_what_to_do(run: Run, shop: Shop, tmp_path: Path, name: str) -> None:
    """FL-10: a pipe such as <(...) and a device can be read once; nothing is written beside them."""
    if name == "pipe":
        name = str(tmp_path / "pipe")
        os.mkfifo(name)
    result = run("--file", name)
    assert result.exit_code == 2
    assert "--file -" in " ".join(result.stderr.replace("\u2502", " ").split())
    assert not Path(f"{name}.results").exists()
    assert shop.calls == 0


def test_results_that_cannot_be_written_are_one_line(run: Run, orders: Path) -> None:
    """FL-10: no traceback."""
    result = run("--file", str(orders), "--results", "/no/such/place/results")
    assert result.exit_code == 1
    assert "cannot write /no/such/place/results" in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_a_byte_order_mark_is_no_fault(run: Run, shop: Shop, tmp_path: Path) -> None:
    """FL-11: some editors put one first."""
    file = tmp_path / "marked"
    file.write_bytes(b"\xef\xbb\xbf" + b'{"type": "Order", "payload": {"n": 1}}\n')
    assert (run("--file", str(file)).exit_code, shop.numbers) == (0, [1])


def test_a_fault_is_named_by_its_line_not_by_its_place_in_a_batch(run: Run, shop: Shop, orders: Path) -> None:
    """FL-10: what the service calls artifacts[2].payload.a is payload.a of the line."""
    shop.faults = {3: ("payload.a", "is too small")}
    result = run("--file", str(orders))
    error = results_of(orders)[3]["error"]
    assert (error["details"], error["message"]) == (
        [{"field": "payload.a", "message": "is too small"}], "payload.a: is too small",
    )  # fmt: skip
    assert "artifacts[" not in result.stdout


def test_a_deprecated_type_is_told_once(run: Run, shop: Shop, orders: Path) -> None:
    """FL-11: on stderr, with what to use in its place."""
    shop.deprecated = {"Order": "use Purchase"}
    result = run("--file", str(orders), "--batch-size", "3")
    assert result.exit_code == 0
    assert result.stderr.count("Order is deprecated: use Purchase") == 1
