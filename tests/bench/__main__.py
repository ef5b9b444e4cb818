"""`make bench`: measures the service on this machine, prints a table and writes JSON.

One run starts everything it measures: durable PostgreSQL, `millstream serve`, Envoy, an SDK worker. Client and all of
these share the machine's cores. Every answer is checked, and the database at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import uvloop
from tests.bench import (
    artifacts,
    crowd,
    floods,
    floors,
    flows,
    laden,
    logs,
    overload,
    payloads,
    report,
    scale,
    stored,
    tasks,
    timers,
    tracing,
    watching,
)
from tests.bench.harness import Harness, Options
from tests.bench.load import BenchError
from tests.bench.meters import WalSyncs
from tests.bench.stand import Stand, running
from tests.bench.verify import verified

_QUIET_LOAD = 0.5
PAYLOAD_MIB = 1024


def all_rows(arguments: argparse.Namespace) -> list[report.Row]:
    """Every row in the order of the table."""
    by_name = {row.name: row for row in [*floors.rows(), *tasks.rows(), *artifacts.rows()]}
    idle = by_name.pop("idle-w100")
    spine = list(by_name.values())
    # The laden ones come last: what they store stays.
    return [
        *spine,
        idle,
        *flows.rows(),
        *timers.rows(),
        *tracing.rows(),
        *logs.rows(),
        *floods.rows(),
        *scale.rows(),
        *overload.rows(),
        *crowd.rows(),
        *watching.rows(),
        *payloads.rows(arguments.payload_mib),
        *stored.rows(arguments.stored_runs),
        *laden.rows(spine, arguments.stored),
    ]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="rows whose name begins so")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a window (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="windows a row; the median counts (default 3)")
    parser.add_argument("--profile", action="append", default=[], metavar="NAME", help="record this row with py-spy")
    parser.add_argument("--profile-of", default="server", choices=("server", "worker"), help="which process")
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds a window may wait for a quiet machine (default 0)"
    )
    parser.add_argument(
        "--payload-mib", type=int, default=PAYLOAD_MIB, help=f"size of the payloads (default {PAYLOAD_MIB:,} MiB)"
    )
    parser.add_argument("--native", action="store_true", help="record native frames, too")
    parser.add_argument(
        "--stored", type=int, default=laden.STORED, help="artifacts and tasks that the laden rows store (default 1M)"
    )
    parser.add_argument(
        "--stored-runs",
        type=int,
        default=stored.STORED_RUNS,
        help="finished runs that start-stored stores (default 10M)",
    )
    parser.add_argument("--models", action="store_true", help="let the worker use the example's pydantic handlers")
    parser.add_argument("--output", type=Path, default=Path(".millstream/bench"), help="where JSON and profiles go")
    parser.add_argument("--dir", type=Path, help="where the database is (default: the directory of temporary files)")
    return parser.parse_args(argv)


def chosen(arguments: argparse.Namespace) -> list[report.Row]:
    """The rows asked for. Raises BenchError where a name is nobody's."""
    rows = all_rows(arguments)
    for name in [*arguments.only, *arguments.profile]:
        if not any(row.name.startswith(name) for row in rows):
            raise BenchError(f"no row begins with {name!r}: {', '.join(row.name for row in rows)}")
    wanted = arguments.only or arguments.profile or [""]
    return [row for row in rows if row.name.startswith((*wanted, *arguments.profile))]


def file_system(path: Path) -> str:
    """The kind of file system that a path lies on."""
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    return str(max(mounts, key=lambda part: len(part.mountpoint)).fstype) if mounts else "unknown"


async def machine(stand: Stand, options: Options) -> dict[str, Any]:
    """What the figures were taken on."""
    connection = await stand.connect()
    version = await connection.fetchval("SHOW server_version")
    durable = [await connection.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit")]
    await connection.close()
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load average before": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postgresql": version,
        "fsync, synchronous_commit": durable,
        "file system": file_system(stand.base.resolve()),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "worker": "the example's pydantic handlers" if stand.models else "lean handlers on dicts",
    }


async def check(stand: Stand) -> tuple[dict[str, Any], list[str]]:
    """Counts and faults of every database that was written."""
    counts: dict[str, Any] = {}
    faults: list[str] = []
    connection = await stand.connect()
    engine = await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = 'bench_engine'")
    counts["millstream"], found = await verified(connection, stand.published)
    faults += found
    await connection.close()
    if engine:
        connection = await stand.connect("bench_engine")
        counts["bench_engine"], found = await verified(connection, None)
        faults += found
        await connection.close()
    return counts, faults


async def run(arguments: argparse.Namespace, rows: Sequence[report.Row], base: Path) -> int:
    """Measure, print, write; the exit code."""
    options = Options(
        arguments.seconds, arguments.rounds, _profiled(arguments, rows), arguments.profile_of, arguments.native,
        arguments.output, arguments.patience,
    )  # fmt: skip
    arguments.output.mkdir(parents=True, exist_ok=True)
    async with running(base, models=arguments.models) as stand:
        about = await machine(stand, options)
        print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
        if about["file system"] == "tmpfs":
            print("NOTE: this is memory, where a sync costs nothing: give --dir on a disk", flush=True)
        if about["load average before"] > _QUIET_LOAD:
            print("NOTE: something else runs on this machine", flush=True)
        connection = await stand.connect()
        results = await Harness(stand, WalSyncs(connection, stand.nudge), options).measure(rows)
        await connection.close()
        counts, faults = await check(stand)
    report.judge(rows, results)
    print(f"\n{report.table(list(results.values()))}\n\nchecked: {counts}")
    text = json.dumps(report.as_json(list(results.values()), about, {"counts": counts, "faults": faults}), indent=1)
    (arguments.output / "bench.json").write_text(text)
    print(f"written: {arguments.output / 'bench.json'}")
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


def _profiled(arguments: argparse.Namespace, rows: Sequence[report.Row]) -> frozenset[str]:
    names = tuple(arguments.profile)
    return frozenset(row.name for row in rows if names and row.name.startswith(names))


def main() -> int:
    """Parse the command line and measure."""
    arguments = parse(sys.argv[1:])
    if arguments.list:
        print("\n".join(f"{row.name:18} {row.title}" for row in all_rows(arguments)))
        return 0
    with tempfile.TemporaryDirectory(prefix="millstream-bench-", dir=arguments.dir) as scratch:
        base = Path(scratch)
        base.chmod(0o711)  # the database's user must pass through where root runs this
        try:
            return uvloop.run(run(arguments, chosen(arguments), base))
        except BenchError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
