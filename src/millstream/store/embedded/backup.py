"""A whole copy of the embedded database: taken while its server runs, proved file by file when it is put back."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from millstream.store.embedded.server import EmbeddedPostgres

MANIFEST = "manifest.json"
_FORMAT = 1
_CHUNK_BYTES = 1 << 20


class BackupError(RuntimeError):
    """A backup cannot be taken or put back. Its message is one line that says what to do."""


@dataclass(frozen=True)
class Manifest:
    """What a backup holds; `files` maps each file's path within it to the SHA-256 of its content."""

    version: str
    """The release of Millstream that took it."""
    postgres_major: int
    revision: str | None
    """The schema's revision, None where the database was never migrated."""
    taken_at: str
    """When it was complete, UTC, ISO 8601."""
    files: Mapping[str, str]
    format: int = _FORMAT


def take(server: EmbeddedPostgres, target: Path, *, version: str, revision: str | None) -> Manifest:
    """Copy the running `server` to the new directory `target`, which appears only when it is whole.

    Everything that was committed when the call began is in it. Blocks. Raises BackupError.
    """
    target = target.absolute()
    if target.exists():
        raise BackupError(f"{target} exists already: name a new directory")
    scratch = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        scratch.mkdir(mode=0o700, parents=True)
        _copy_cluster(server, scratch / "data")
        shutil.copyfile(server.base / "password", scratch / "password")
        (scratch / "password").chmod(0o600)
        taken_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        manifest = Manifest(version, server.binaries.major, revision, taken_at, _digests(scratch))
        with (scratch / MANIFEST).open("w") as file:
            json.dump(asdict(manifest), file, indent=1)
        os.sync()
        scratch.rename(target)
    except OSError as error:
        raise BackupError(f"cannot write the backup {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def read(source: Path) -> Manifest:
    """Return the manifest of the backup `source`. Raises BackupError where there is none, or not ours."""
    try:
        fields = json.loads((source / MANIFEST).read_text())
        manifest = Manifest(**fields)
    except OSError as error:
        raise BackupError(f"{source} is no backup: {MANIFEST}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise BackupError(f"{source} is no backup that this release can read: {error}") from error
    if manifest.format != _FORMAT:
        raise BackupError(f"{source} has format {manifest.format}, this release reads {_FORMAT}: use a newer release")
    return manifest


def put_back(source: Path, server: EmbeddedPostgres, *, force: bool = False) -> Path | None:
    """Make the backup `source` the data of `server`, which must not run; return where the old data lies now.

    Every file is compared with the manifest before anything of the old data moves. Without `force` a directory
    with data is refused. Blocks. Raises BackupError.
    """
    manifest = read(source)
    if manifest.postgres_major != server.binaries.major:
        raise BackupError(
            f"{source} was made by PostgreSQL {manifest.postgres_major}, and here is {server.binaries.major}: set "
            f"MILLSTREAM_PG_BIN to a version {manifest.postgres_major} (docs/operations.md, the next PostgreSQL)"
        )
    occupied = server.cluster.exists() or (server.base / "password").exists()
    if occupied and not force:
        raise BackupError(f"{server.base} holds data: restore to another --data-dir, or --force to put it aside")
    if (pid := server.running_pid()) is not None:
        raise BackupError(f"a server (pid {pid}) runs in {server.base}: stop it first")
    scratch = server.base / "restore.new"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        _copy_proved(source, scratch, manifest.files)
        for path in (scratch / "data", *(scratch / "data").rglob("*")):
            server.account.own(path)
        os.sync()
        aside = _put_aside(server.base) if occupied else None
        (scratch / "password").rename(server.base / "password")
        (scratch / "data").rename(server.cluster)
    except OSError as error:
        raise BackupError(f"cannot restore to {server.base}: {error.filename}: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return aside


def _copy_cluster(server: EmbeddedPostgres, target: Path) -> None:
    program = server.binaries.directory / "pg_basebackup"
    if not os.access(program, os.X_OK):
        raise BackupError(f"{server.binaries.directory} has no pg_basebackup: set MILLSTREAM_PG_BIN to a whole install")
    argv = [
        str(program), "--host", str(server.socket_dir), "--username", "millstream", "--pgdata", str(target),
        "--wal-method=stream", "--checkpoint=fast", "--no-password",
    ]  # fmt: skip
    password = (server.base / "password").read_text().strip()
    environment = server.environment() | {"PGPASSWORD": password}
    result = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, cwd="/")
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["it says nothing"]
        raise BackupError(f"PostgreSQL cannot be copied: {lines[-1]}")


def _files(root: Path) -> list[Path]:
    found = [path for path in sorted(root.rglob("*")) if not path.is_dir() or path.is_symlink()]
    for path in found:
        if path.is_symlink() or not path.is_file():
            raise BackupError(f"{path} is no plain file: a backup has no links")
    return found


def _digests(root: Path) -> dict[str, str]:
    digests = {}
    for path in _files(root):
        with path.open("rb") as file:
            digests[path.relative_to(root).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _copy_proved(source: Path, target: Path, expected: Mapping[str, str]) -> None:
    """Copy what the manifest names; it is the copy whose digests count."""
    found = {path.relative_to(source).as_posix(): path for path in _files(source)}
    found.pop(MANIFEST, None)
    if found.keys() != expected.keys() or not {"password", "data/PG_VERSION"} <= found.keys():
        odd = sorted(found.keys() ^ expected.keys()) or ["data/PG_VERSION"]
        raise BackupError(f"{source} is not whole: {odd[0]} is missing, or nothing of the backup")
    target.mkdir(mode=0o700)
    for directory in sorted(path for path in source.rglob("*") if path.is_dir()):
        (target / directory.relative_to(source)).mkdir(mode=0o700)
    for name, path in found.items():
        digest = hashlib.sha256()
        with path.open("rb") as file, (target / name).open("xb") as copy:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
        (target / name).chmod(0o600)
        if digest.hexdigest() != expected[name]:
            raise BackupError(f"{source} is damaged: the content of {name} is not what was backed up")


def _put_aside(base: Path) -> Path:
    aside = base / f"before-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    aside.mkdir(mode=0o711)
    for name in ("data", "password"):
        with contextlib.suppress(FileNotFoundError):
            (base / name).rename(aside / name)
    return aside
