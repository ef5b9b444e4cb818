"""The supervisor on small programs: stages, restarts, ordered stops, giving up, and no orphan."""

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from millstream.cli.supervisor import Program, Supervisor, SupervisorError

LIVE = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
NOTE_ITS_END = """
import signal, sys, time
def end(*_):
    open(sys.argv[1], "a").write(sys.argv[2] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
time.sleep(60)
"""


class Bench:
    """A supervisor with what it said."""

    def __init__(self, log_dir: Path) -> None:
        """Nothing runs yet."""
        self.lines: list[str] = []
        self.log_dir = log_dir
        self.supervisor = Supervisor(log_dir, self.lines.append)

    def program(self, name: str, code: str, *arguments: str, **more: object) -> Program:
        """A Python program."""
        return Program(name, [sys.executable, "-u", "-c", code, *arguments], **more)  # type: ignore[arg-type]

    def wrote(self, name: str, text: str) -> bool:
        """Whether the program wrote `text` to its log."""
        log = self.log_dir / f"{name}.log"
        return log.exists() and text in log.read_text()

    def pid(self, name: str) -> int:
        """Of the program's process now."""
        (child,) = [child for child in self.supervisor._children if child.program.name == name]
        assert child.process is not None
        return child.process.pid


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A supervisor that is stopped at the end."""
    made = Bench(tmp_path / "logs")
    yield made
    hurry = asyncio.Event()
    hurry.set()
    await made.supervisor.stop(at_once=hurry)


async def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Wait until the callable returns true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (it asks about other processes, which set no event)
            await asyncio.sleep(0.01)


def exists(pid: int) -> bool:
    """Whether the process is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_a_stage_is_started_when_the_one_before_is_ready(bench: Bench, tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    async def flag_is_there() -> bool:
        return flag.exists()

    slow = bench.program(
        "slow",
        "import sys, time; time.sleep(0.3); open(sys.argv[1], 'w'); time.sleep(60)",
        str(flag),
        is_ready=flag_is_there,
    )
    await bench.supervisor.start([slow])
    assert flag.exists()


async def test_a_program_that_dies_is_started_again_and_it_is_said_so(bench: Bench) -> None:
    await bench.supervisor.start([bench.program("steady", LIVE)])
    before = bench.pid("steady")
    os.kill(before, signal.SIGKILL)
    await until(lambda: bench.pid("steady") != before)
    assert bench.lines == ["steady ended (killed by SIGKILL); starting it again in 0.25 s"]
    assert exists(bench.pid("steady"))


async def test_the_pause_grows_from_death_to_death(bench: Bench) -> None:
    await bench.supervisor.start([bench.program("mortal", "raise SystemExit(3)")])
    await until(lambda: len(bench.lines) == 3)
    assert [line.rsplit(" ", 2)[1] for line in bench.lines] == ["0.25", "0.5", "1"]


async def test_a_program_that_cannot_start_ends_it_with_the_line_that_says_why(bench: Bench) -> None:
    async def never() -> bool:
        return False

    broken = bench.program("broken", "import sys; print('noise'); sys.exit('error: no such table')", is_ready=never)
    with pytest.raises(SupervisorError, match=r"broken does not start \(exit code 1\): error: no such table"):
        await bench.supervisor.start([broken])


async def test_a_program_that_is_not_there_says_so(bench: Bench) -> None:
    async def never() -> bool:
        return False

    with pytest.raises(SupervisorError, match="cannot run /does/not/exist: No such file"):
        await bench.supervisor.start([Program("missing", ["/does/not/exist"], is_ready=never)])


async def test_a_program_that_is_never_ready_is_given_up(bench: Bench) -> None:
    async def never() -> bool:
        return False

    with pytest.raises(SupervisorError, match="mute is not ready after 0 s"):
        await bench.supervisor.start([bench.program("mute", LIVE, is_ready=never, ready_s=0.3)])


async def test_the_last_started_is_stopped_first(bench: Bench, tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    for name in ("first", "second", "third"):
        await bench.supervisor.start([bench.program(name, NOTE_ITS_END, str(ends), name)])
    await until(lambda: all(bench.wrote(name, "up") for name in ("first", "second", "third")))
    await bench.supervisor.stop()
    assert ends.read_text().split() == ["third", "second", "first"]


async def test_a_program_that_does_not_end_is_killed(bench: Bench) -> None:
    await bench.supervisor.start([bench.program("deaf", DEAF, stop_s=0.2)])
    await until(lambda: bench.wrote("deaf", "deaf"))
    pid = bench.pid("deaf")
    await bench.supervisor.stop()
    assert not exists(pid)
    assert bench.lines == ["deaf did not end within 0.2 s; killing it"]


async def test_work_is_finished_before_a_program_is_told_to_end(bench: Bench, tmp_path: Path) -> None:
    ends = tmp_path / "ends"

    async def drain() -> None:
        ends.write_text("drained\n")

    await bench.supervisor.start([bench.program("drained", NOTE_ITS_END, str(ends), "ended", before_stop=drain)])
    await until(lambda: bench.wrote("drained", "up"))
    await bench.supervisor.stop()
    assert ends.read_text().split() == ["drained", "ended"]


async def test_each_run_has_a_log_of_its_own_and_keeps_the_one_before(tmp_path: Path) -> None:
    for text in ("one", "two", "three"):
        bench = Bench(tmp_path)
        await bench.supervisor.start([bench.program("writer", f"print('{text}'); {LIVE}")])
        await until(functools.partial(bench.wrote, "writer", text))
        await bench.supervisor.stop()
    assert (tmp_path / "writer.log").read_text() == "three\n"
    assert (tmp_path / "writer.log.1").read_text() == "two\n"


@pytest.mark.parametrize("poll", [False, True], ids=["kernel", "poll"])
async def test_a_killed_supervisor_takes_its_programs_with_it(tmp_path: Path, poll: bool) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from millstream.cli.supervisor import Program, Supervisor
async def main():
    supervisor = Supervisor(Path(sys.argv[1]), print)
    code = "import os; print(os.getpid()); import time; time.sleep(60)"
    await supervisor.start([Program("child", [sys.executable, "-uc", code])])
    print("up", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    environment = os.environ | ({"MILLSTREAM_TETHER_POLL": "1"} if poll else {})
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, tmp_path, stdout=subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"up\n"
    log = tmp_path / "child.log"
    await until(lambda: log.exists() and log.read_text().endswith("\n"))
    parent.kill()
    await parent.wait()
    await until(lambda: not exists(int(log.read_text())))
