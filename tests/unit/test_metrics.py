"""Metrics of several processes are those of all that live, and count what dead ones did."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from millstream.adapters import shared_metrics
from millstream.adapters.shared_metrics import SharedMetrics
from millstream.adapters.stream_metrics import STREAMS, StreamMetrics

ONE = """
import sys
from millstream.adapters.metrics import Metrics

metrics = Metrics()
meter = metrics.meter("RunService/GetRun")
meter.begin()
meter.end("OK", 0.001)
metrics.engine.set("leases", 3)
metrics.engine.set("tasks_ready", 7)
stream = metrics.streams.meter("run")
stream.begin()
for _ in range(5):
    stream.fresh_item(2_000_000)
stream.beat()
metrics.streams.settle()
metrics.logs.stored(10, 2)
print(metrics.exposition().decode() + "end", flush=True)
sys.stdin.read()
"""


class Process:
    """One that shares its metrics through a directory."""

    def __init__(self, directory: Path) -> None:
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", ONE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.shown = [line.rstrip("\n") for line in iter(self._process.stdout.readline, "end\n")]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """Kill it, as the kernel might."""
        self._process.kill()
        self._process.communicate()


def test_each_process_answers_for_all_that_live(tmp_path: Path) -> None:
    first, second = Process(tmp_path), Process(tmp_path)
    assert 'millstream_requests_total{code="OK",rpc="RunService/GetRun"} 2.0' in second.shown
    assert "millstream_leases 6.0" in second.shown, "leases add up"
    assert "millstream_tasks_ready 7.0" in second.shown, "all see the same backlog"
    first.kill()
    second.kill()


def test_what_a_killed_process_held_is_forgotten_and_what_it_did_is_not(tmp_path: Path) -> None:
    Process(tmp_path).kill()
    second = Process(tmp_path)
    assert 'millstream_requests_total{code="OK",rpc="RunService/GetRun"} 2.0' in second.shown
    assert "millstream_leases 3.0" in second.shown
    second.kill()


CALLS = 'millstream_requests_total{code="OK",rpc="RunService/GetRun"}'
SENT = 'millstream_stream_messages_total{message="item",stream="run"}'
OPEN = 'millstream_streams_open{stream="run"}'
SECONDS = 'millstream_request_seconds_count{rpc="RunService/GetRun"}'


def shown(directory: Path) -> dict[str, float]:
    """What a process would answer now."""
    lines = SharedMetrics(directory).exposition().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def died(directory: Path) -> int:
    """A process that counted one call and was killed; its process id."""
    process = Process(directory)
    process.kill()
    return process.pid


def test_a_killed_process_is_forgotten_at_the_next_look_and_its_files_do_not_pile_up(tmp_path: Path) -> None:
    living = Process(tmp_path)
    for number in range(3):
        died(tmp_path)
        found = shown(tmp_path)
        assert (found[CALLS], found[SECONDS]) == (number + 2, number + 2), "what it did stays"
        assert (found["millstream_leases"], found["millstream_tasks_ready"]) == (3, 7), "what it held does not"
        assert (found[SENT], found[OPEN]) == (5 * (number + 2), 1)
        assert found['millstream_log_lines_total{outcome="stored"}'] == 10 * (number + 2)
        buckets = [value for name, value in found.items() if name.startswith("millstream_request_seconds_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == number + 2
        owners = {file.stem.rpartition("_")[2] for file in tmp_path.glob("*.db")}
        assert owners == {str(living.pid), "dead"}
    living.kill()
    found = shown(tmp_path)
    assert found[CALLS] == 4
    assert "millstream_leases" not in found
    assert OPEN not in found


@pytest.mark.parametrize("after", ["the plan", "an archive", "a removal"])
def test_a_process_that_dies_while_it_tidies_up_makes_nothing_count_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    died(tmp_path)
    died(tmp_path)
    left = {"the plan": 0, "an archive": 1, "a removal": 3}[after]

    def dies(real: object) -> object:
        def step(*arguments: object, **named: object) -> object:
            nonlocal left
            if (tmp_path / "fold.json").exists():
                if not left:
                    raise SystemExit
                left -= 1
            return real(*arguments, **named)  # type: ignore[operator]

        return step

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dies(Path.replace))
        patched.setattr(Path, "unlink", dies(Path.unlink))
        with pytest.raises(SystemExit):
            shown(tmp_path)
    assert (tmp_path / "fold.json").exists()
    for _ in range(2):
        assert (shown(tmp_path)[CALLS], shown(tmp_path)[SECONDS]) == (2, 2)
    assert sorted(file.name for file in tmp_path.glob("*")) == ["counter_dead.db", "histogram_dead.db", "lock"]


def test_a_process_with_the_id_of_a_dead_one_begins_with_nothing_in_its_hands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, where each has the id 1."""
    pid = died(tmp_path)
    monkeypatch.setattr(os, "getpid", lambda: pid)
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    SharedMetrics(tmp_path).begin()
    found = shown(tmp_path)
    assert found[CALLS] == 1
    assert "millstream_leases" not in found


def test_a_file_that_a_death_left_broken_spoils_nothing_else(tmp_path: Path) -> None:
    died(tmp_path)
    pid = died(tmp_path)
    (tmp_path / f"counter_{pid}.db").write_bytes(b"")
    assert (shown(tmp_path)[CALLS], shown(tmp_path)[SECONDS]) == (1, 2)


def test_a_process_that_was_stopped_while_it_tidied_up_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_metrics, "_LOCK_S", 0.0)
    died(tmp_path)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert shown(tmp_path)[CALLS] == 1
    assert "millstream_leases" not in shown(tmp_path)


def test_messages_are_counted_once_however_often_they_are_asked_for_and_few_are_timed() -> None:
    """What a flood of messages costs is not a measurement each; the clock of another server may be ahead."""
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry)
    meter = metrics.meter("task_logs")
    meter.fresh_item(-5_000)
    for _ in range(9_999):
        meter.fresh_item(3_000_000)
    for _ in range(2):
        metrics.settle()
    sent = {"stream": "task_logs", "message": "item"}
    assert registry.get_sample_value("millstream_stream_messages_total", sent) == 10_000
    timed = registry.get_sample_value("millstream_stream_delay_seconds_count", {"stream": "task_logs"})
    assert timed is not None
    assert 1 <= timed < 1_000
    assert registry.get_sample_value("millstream_stream_delay_seconds_sum", {"stream": "task_logs"}) == (timed - 1) * 3


def test_there_are_no_kinds_of_streams_but_those_listed() -> None:
    """No label holds what a caller names."""
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry)
    with pytest.raises(KeyError):
        metrics.meter("01890a5d-ac96-774b-bcce-b302099a8057")
    shown = {sample.labels["stream"] for metric in registry.collect() for sample in metric.samples if sample.labels}
    assert shown == set(STREAMS)
