"""The launcher: makes a data directory, says how to run its server, and runs it for tests."""

import asyncio
import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

import asyncpg

from millstream import tether
from millstream.store.embedded import binaries
from millstream.store.embedded.places import (
    Account,
    EmbeddedPostgresError,
    account_for,
    make_ephemeral_base,
    reachable_base,
    socket_directory,
)

_T = TypeVar("_T")

_USER = "millstream"
_DATABASE = "millstream"
_FREE_BYTES_NEEDED = 256 << 20
_OLD_SERVER_S = 5.0
_READY_S = 60.0
_STOP_S = 20.0

# WAL is sized so that a checkpoint is rare under load (measured on two cores); no lz4, which the wheel is
# built without; no jit, which costs 100 ms where our statements take one.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "wal_compression": "pglz",
    "wal_buffers": "16MB",
    "min_wal_size": "256MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "autovacuum_naptime": "15s",
    "autovacuum_vacuum_cost_limit": "2000",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_EPHEMERAL_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "512MB",
    # Within the data directory, which is swept, where a killed server's segments would stay until the next boot.
    "dynamic_shared_memory_type": "mmap",
}


class EmbeddedPostgres:
    """One PostgreSQL server with a directory of its own, reached by a Unix socket and a random password.

    `data_dir` is ours alone: `data/` (the cluster), `password` (0600) and `socket/` go there; it is created.
    `ephemeral` trades every durability for speed and keeps the data in memory where there is room; without a
    `data_dir` the directory is a temporary one and goes away with `remove()` (or with the context manager).

    Two ways to use it: `async with EmbeddedPostgres(...) as server` starts and stops it; a supervisor calls
    `initialise()`, runs `command()` with `environment()` itself, and awaits `wait_ready()`.
    """

    def __init__(self, data_dir: Path | None = None, *, ephemeral: bool = False) -> None:
        """Touch nothing yet, apart from the temporary directory of an ephemeral server.

        Raises EmbeddedPostgresError when nobody could run a server in `data_dir`, or no program is at hand.
        """
        if data_dir is None and not ephemeral:
            raise ValueError("only an ephemeral server can do without a data directory")
        self.ephemeral = ephemeral
        self._lock: int | None = None
        if data_dir is None:
            self.base, self._lock = make_ephemeral_base()
        else:
            self.base = _explained(reachable_base, data_dir)
        self.cluster = self.base / "data"
        self.account: Account = account_for(self.cluster)
        self.binaries = binaries.find(self.account)
        self.socket_dir = socket_directory(self.base)
        self._process: asyncio.subprocess.Process | None = None
        self._log: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """How to connect, as a libpq URL; `initialise()` must have run."""
        password = (self.base / "password").read_text().strip()
        return f"postgresql://{_USER}:{password}@/{_DATABASE}?host={self.socket_dir}"

    def initialise(self) -> None:
        """Make the data directory fit to be served: create it, or check what is there.

        Blocks for about a second the first time. Raises EmbeddedPostgresError for a directory that is
        broken or not ours, another major version, a server that runs in it already, and a full disk.
        """
        free = shutil.disk_usage(self.base).free
        if free < _FREE_BYTES_NEEDED:
            raise EmbeddedPostgresError(
                f"{self.base} has {free >> 20} MB left; {_FREE_BYTES_NEEDED >> 20} MB are needed"
            )
        if self.cluster.exists():
            self.check_existing()
            self._await_old_server()
        else:
            _explained(self._create)
        self.account.make_private(self.socket_dir)

    def command(self) -> list[str]:
        """Return the argument list of the server, tethered to the calling process (it must start it itself).

        The process sees `environment()` and needs no shell; SIGINT stops it at once, without losing anything.
        """
        settings = _SETTINGS | {"shared_buffers": _shared_buffers()} | (_EPHEMERAL_SETTINGS if self.ephemeral else {})
        argv = [self.binaries.postgres, "-D", str(self.cluster), "-k", str(self.socket_dir)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        return tether.command(argv, at_death=signal.SIGINT, uid=self.account.uid, gid=self.account.gid)

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the server: none of the caller's PG* variables reach it."""
        return {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath, "HOME": str(self.base)}

    async def is_ready(self) -> bool:
        """Whether the server answers a query now."""
        try:
            connection = await asyncpg.connect(self.url, timeout=5)
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        await connection.close()
        return True

    async def wait_ready(self, timeout_s: float = _READY_S) -> None:
        """Return when the server answers; recovery after a crash may take a while.

        Raises EmbeddedPostgresError after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not await self.is_ready():
            if self._process is not None and self._process.returncode is not None:
                raise EmbeddedPostgresError(f"PostgreSQL ended at its start: {self._last_words()}")
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"PostgreSQL in {self.base} does not answer after {timeout_s:.0f} s")
            await asyncio.sleep(0.02)

    async def start(self) -> None:
        """Initialise, start and wait until it answers. Raises EmbeddedPostgresError."""
        await asyncio.to_thread(self.initialise)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = await asyncio.create_subprocess_exec(
            *self.command(),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            cwd="/",
        )
        try:
            await self.wait_ready()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop it as `pg_ctl -m fast` does, by force after 20 s; an ephemeral directory goes away."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None
        self.remove()

    def kill(self) -> None:
        """Kill the server at once, as a crash would (tests); `stop()` is still needed."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def remove(self) -> None:
        """Remove a temporary directory. Does nothing for a data directory that the caller named."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            shutil.rmtree(self.base, ignore_errors=True)
            if self.socket_dir.parent != self.base:
                shutil.rmtree(self.socket_dir, ignore_errors=True)

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    # -- making and checking the directory -------------------------------------------------------------------

    def _create(self) -> None:
        """Create the cluster under another name first: nobody ever meets half of one."""
        self._check_user()
        scratch = self.base / "data.new"
        shutil.rmtree(scratch, ignore_errors=True)
        self.account.make_private(scratch)
        password = secrets.token_hex(24)
        password_file = scratch.with_name("password.new")
        _write_private(password_file, password)
        self.account.own(password_file)
        self._run(
            [
                self.binaries.initdb, f"--pgdata={scratch}", f"--username={_USER}",
                f"--pwfile={password_file}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale",
                "--no-instructions", *(["--no-sync"] if self.ephemeral else []),
            ]
        )  # fmt: skip
        self._run(
            [self.binaries.postgres, "--single", "-D", str(scratch), "postgres"],
            f"CREATE DATABASE {_DATABASE}\n",
        )
        password_file.unlink()
        _write_private(self.base / "password", password)
        scratch.rename(self.cluster)

    def _check_user(self) -> None:
        try:
            pwd.getpwuid(self.account.effective_uid)
        except KeyError:
            raise EmbeddedPostgresError(
                f"uid {self.account.effective_uid} has no entry in /etc/passwd, and initdb wants one: "
                "add an entry, run as another user, or use --database-url"
            ) from None

    def _run(self, argv: list[str], stdin: str = "") -> None:
        result = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=self.environment(),
            cwd="/",
            user=self.account.uid,
            group=self.account.gid,
            extra_groups=None if self.account.uid is None else [],
        )
        if result.returncode != 0:
            raise EmbeddedPostgresError(f"cannot create a database in {self.base}: {_telling_line(result.stderr)}")

    def check_existing(self) -> None:
        """Raise EmbeddedPostgresError for a directory that is broken, open to others or of another major version."""
        version = self.cluster / "PG_VERSION"
        if not version.is_file() or not (self.cluster / "global/pg_control").is_file():
            raise EmbeddedPostgresError(
                f"{self.cluster} is not a whole PostgreSQL data directory: restore it or remove it"
            )
        found = version.read_text().strip()
        if found != str(self.binaries.major):
            raise EmbeddedPostgresError(
                f"{self.cluster} was made by PostgreSQL {found or 'unknown'}, not {self.binaries.major}: "
                f"set MILLSTREAM_PG_BIN to a version {found}, or use another data directory; "
                'docs/operations.md, "The next PostgreSQL", tells how to bring the data over'
            )
        if not (self.base / "password").is_file():
            raise EmbeddedPostgresError(f"{self.base / 'password'} is missing: restore it, or remove {self.base}")
        if self.cluster.stat().st_mode & 0o027:
            raise EmbeddedPostgresError(f"{self.cluster} is open to other users: chmod 700 {self.cluster}")

    def _await_old_server(self) -> None:
        """Give the server of a supervisor that was just killed the time to follow it."""
        deadline = time.monotonic() + _OLD_SERVER_S
        while (pid := self.running_pid()) is not None:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"a server (pid {pid}) already runs in {self.base}: stop it, or use another directory"
                )
            time.sleep(0.05)

    def running_pid(self) -> int | None:
        """The process id of the server that runs in this directory, whoever started it; None where none does."""
        try:
            pid = int((self.cluster / "postmaster.pid").read_text().split()[0])
            os.kill(pid, 0)
        except PermissionError:
            pass  # it lives, as another user
        except (OSError, ValueError, IndexError):
            return None
        with contextlib.suppress(OSError):
            # A number that was given to another program since; PostgreSQL finds that out itself, too.
            return pid if b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
        return pid

    def _last_words(self) -> str:
        if self._log is None:
            return "no log"
        self._log.seek(0)
        return _telling_line(self._log.read().decode(errors="replace"))


def _explained(step: Callable[..., _T], *arguments: object) -> _T:
    """Run a step that touches the file system, and turn the system's refusal into our one line."""
    try:
        return step(*arguments)
    except OSError as error:
        raise EmbeddedPostgresError(f"cannot use {error.filename or 'the data directory'}: {error.strerror}") from error


def _shared_buffers() -> str:
    """A quarter of a gigabyte where the machine has four or more: beyond that the system's cache will do."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return "256MB" if memory >= 4 << 30 else "128MB"


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")


def _telling_line(output: str) -> str:
    """The line of a program's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it says nothing"]
    return next((line for line in reversed(lines) if re.search(r"FATAL|PANIC|ERROR|error:", line)), lines[-1])
