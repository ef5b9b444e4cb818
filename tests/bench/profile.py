"""A py-spy record of a process under load, and its top frames."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections import Counter
from pathlib import Path

from tests.bench.load import BenchError

_RATE_HZ = 200


async def record(pid: int, seconds: float, to: Path, *, native: bool = False) -> None:
    """Record stacks in the raw form that speedscope and flamegraph.pl read. Idle threads are left out."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise BenchError("py-spy is not at hand")
    options = ["--format", "raw", "--rate", str(_RATE_HZ), "--duration", str(max(1, round(seconds)))]
    options += ["--native"] if native else []
    process = await asyncio.create_subprocess_exec(
        program, "record", *options, "--pid", str(pid), "--output", str(to),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    if process.returncode:
        raise BenchError(f"py-spy: {said.decode()[-500:]}")


def top_frames(raw: Path, count: int = 25) -> str:
    """The frames with most time of their own, and those with most time in all below them."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in raw.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = stack.split(";")
        total += int(samples)
        own[frames[-1]] += int(samples)
        whole.update(dict.fromkeys(frames, int(samples)))
    if not total:
        return "  no samples"
    lines = [f"  {total} samples at {_RATE_HZ}/s", "  own time:"]
    lines += [f"  {100 * n / total:6.1f} %  {frame}" for frame, n in own.most_common(count)]
    lines += ["  with what they call:"]
    lines += [f"  {100 * n / total:6.1f} %  {frame}" for frame, n in whole.most_common(2 * count)]
    return "\n".join(lines)
