"""Metrics of several processes are those of all that live, and count what dead ones did."""

import os
import subprocess
import sys
from pathlib import Path

ONE = """
import sys
from millstream.adapters.metrics import Metrics

metrics = Metrics()
meter = metrics.meter("RunService/GetRun")
meter.begin()
meter.end("OK", 0.001)
metrics.engine.set("leases", 3)
metrics.engine.set("tasks_ready", 7)
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
