"""What this machine can do at best: the disk's sync, PostgreSQL's own benchmark, and calls that do nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.bench import rest, rpc
from tests.bench.artifacts import cpu_ms_per_request, large_body
from tests.bench.load import BenchError, closed_loop
from tests.bench.report import Load, Outcome, Row
from tests.bench.stand import ORDER, Stand
from tests.proxy import free_port, running_proxy

from millstream.v1.artifact_service_pb2 import PublishRequest

_BLOCK = bytes(8192)


@contextlib.asynccontextmanager
async def fsync(stand: Stand) -> AsyncIterator[Load]:
    """Write a block of the database's size and sync it, over and over, beside the database."""
    path = stand.base / "fsync"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    sync = getattr(os, "fdatasync", os.fsync)
    os.pwrite(descriptor, bytes(16 << 20), 0)
    os.fsync(descriptor)

    def loop(seconds: float) -> Outcome:
        latencies: list[float] = []
        start = time.perf_counter()
        while (began := time.perf_counter()) < start + seconds:
            os.pwrite(descriptor, _BLOCK, len(latencies) % 2048 * 8192)
            sync(descriptor)
            latencies.append(time.perf_counter() - began)
        return Outcome(len(latencies), time.perf_counter() - start, latencies)

    async def load(seconds: float) -> Outcome:
        return await asyncio.to_thread(loop, seconds)

    try:
        yield load
    finally:
        os.close(descriptor)
        path.unlink()


def pgbench_binary(stand: Stand) -> str | None:
    """Where pgbench is: beside the server's programs, or on PATH."""
    beside = Path(stand.database.binaries.directory) / "pgbench"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("pgbench")


@contextlib.asynccontextmanager
async def pgbench(stand: Stand) -> AsyncIterator[Load]:
    """PostgreSQL's own benchmark: simple updates by 16 clients, each a transaction that is synced."""
    program = pgbench_binary(stand)
    if program is None:
        raise BenchError("pgbench is not at hand")
    connection = await stand.connect()
    await connection.execute("CREATE DATABASE bench_pgbench")
    await connection.close()
    url = urlsplit(stand.url())
    env = os.environ | {
        "PGUSER": url.username or "", "PGPASSWORD": unquote(url.password or ""),
        "PGHOST": str(stand.database.socket_dir), "PGDATABASE": "bench_pgbench",
    }  # fmt: skip

    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            program, *arguments, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        if process.returncode:
            raise BenchError(f"pgbench: {err.decode()[-500:]}")
        return out.decode()

    async def load(seconds: float) -> Outcome:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        whole = max(1, round(seconds))
        said = await run("-N", "-n", "-c", "16", "-j", "2", "-T", str(whole))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        count, tps = re.search(r"actually processed: (\d+)", said), re.search(r"tps = ([\d.]+)", said)
        if count is None or tps is None:
            raise BenchError(f"pgbench said: {said[-500:]}")
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Outcome(int(count[1]), int(count[1]) / float(tps[1]), client_cpu_s=cpu_s)

    await run("-i", "-s", "10", "-q")
    yield load


@contextlib.asynccontextmanager
async def _echo(stand: Stand) -> AsyncIterator[int]:
    port = free_port()
    async with stand.module("echo", "--port", str(port), kind="server"):
        yield port


def echo_grpc(callers: int) -> Row:
    """Unary calls of a bare grpc.aio server."""

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        request = PublishRequest(type="Receipt")
        request.payload.update(ORDER)
        raw = request.SerializeToString()
        async with _echo(stand) as port, rpc.method(port, rpc.PUBLISH) as publish:

            async def once() -> None:
                rpc.published(await publish(raw))

            yield lambda seconds: closed_loop([once] * callers, seconds)

    return Row(f"echo-grpc-c{callers}", f"bare grpc.aio echo, {callers} callers", prepare)


def _through_proxy(raw: bytes, callers: int) -> Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]:
    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with _echo(stand) as port, running_proxy([("127.0.0.1", port)]) as proxy:
            with stand.counting("envoy", proxy.pid):
                async with rest.connections(proxy.port, callers) as connections:

                    def caller(connection: rest.Connection) -> object:
                        async def once() -> None:
                            rest.published(*await connection.request(raw))

                        return once

                    callables = [caller(connection) for connection in connections]
                    yield lambda seconds: closed_loop(callables, seconds)  # type: ignore[arg-type]

    return prepare


def echo_rest(callers: int) -> Row:
    """The same, as REST through Envoy."""
    raw = rest.post("/api/v1/artifacts", {"type": "Receipt", "payload": ORDER})
    title = f"the same as REST through Envoy, {callers} callers"
    return Row(f"echo-rest-c{callers}", title, _through_proxy(raw, callers))


def echo_large() -> Row:
    """The same with the large payload."""
    raw = rest.post("/api/v1/artifacts", large_body())
    title = "server CPU of the echo with a 1 MB payload as REST through Envoy"
    return Row("echo-1mb", title, _through_proxy(raw, 1), unit="ms CPU/request", value=cpu_ms_per_request)


def rows() -> list[Row]:
    """The floors."""
    return [
        Row("fsync", "write 8 KiB and fdatasync, beside the database", fsync),
        Row("pgbench", "pgbench simple-update, scale 10, 16 clients", pgbench),
        echo_grpc(1),
        echo_grpc(64),
        echo_rest(1),
        echo_rest(32),
        echo_rest(64),
        echo_large(),
    ]
