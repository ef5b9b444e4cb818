"""Users and directories: who PostgreSQL runs as, and where that user can work."""

import fcntl
import hashlib
import os
import pwd
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# sun_path holds 108 bytes with its final NUL (Linux; 104 on macOS), and PostgreSQL adds `/.s.PGSQL.5432`.
_SOCKET_DIRECTORY_BYTES = 103 - len("/.s.PGSQL.5432.lock")
_NOBODY = 65534
_MEMORY = Path("/dev/shm")  # noqa: S108 (the memory file system, not a temporary file)
_MEMORY_FREE_BYTES = 1 << 30
_EPHEMERAL_PREFIX = "millstream-pg-"
_SWEEP_AGE_S = 60.0


class EmbeddedPostgresError(RuntimeError):
    """The embedded server cannot run. Its message is one line that says what to do."""


@dataclass(frozen=True)
class Account:
    """The user that the server runs as; None where it is simply the caller."""

    uid: int | None = None
    gid: int | None = None

    @property
    def effective_uid(self) -> int:
        """Its number in any case."""
        return os.geteuid() if self.uid is None else self.uid

    def reaches(self, path: Path) -> bool:
        """Whether it may enter every directory above `path` (by their mode bits)."""
        return self.uid is None or all(self._may(parent, 0o1) for parent in path.parents)

    def may_read(self, path: Path) -> bool:
        """Whether it may read `path` and enter or execute it."""
        return self.uid is None or (self.reaches(path) and self._may(path, 0o5))

    def _may(self, path: Path, bits: int) -> bool:
        try:
            status = path.stat()
        except FileNotFoundError:
            return True  # we are going to create it
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid == self.gid else 0
        return (status.st_mode >> shift) & bits == bits

    def own(self, path: Path) -> None:
        """Make `path` its own."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def make_private(self, path: Path) -> None:
        """Create the directory if need be, for this user alone.

        Raises EmbeddedPostgresError when it belongs to somebody else (a name in /tmp may be taken).
        """
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (self.effective_uid, os.geteuid()):
            raise EmbeddedPostgresError(f"{path} belongs to somebody else (uid {status.st_uid}): remove it")
        path.chmod(0o700)
        self.own(path)


def account_for(cluster: Path) -> Account:
    """Choose who the server of this data directory runs as.

    PostgreSQL refuses to run as root. An existing directory's owner is kept; a new one gets `nobody`.

    Raises EmbeddedPostgresError when the directory belongs to another user than the (unprivileged) caller.
    """
    owner = cluster.stat().st_uid if cluster.exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise EmbeddedPostgresError(
                f"{cluster} belongs to uid {owner}, and this is uid {os.geteuid()}: run as that user, "
                "or use another data directory"
            )
        return Account()
    if owner:
        return Account(owner, _group_of(owner))
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Account(_NOBODY, _NOBODY)
    return Account(entry.pw_uid, entry.pw_gid)


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def reachable_base(base: Path) -> Path:
    """Return `base`, or a directory that stands in for it where the server's user cannot enter `base`.

    That is so for root's own home (0700), where `make run` may well be called. `base` then becomes a link to
    /var/lib/millstream, so that it can still be found, copied and removed from where it is expected.
    """
    base = base.absolute()
    if base.is_symlink() and not base.exists():  # what it led to was removed: start anew
        base.unlink()
    resolved = base.resolve()
    if account_for(resolved / "data").reaches(resolved / "data"):
        resolved.mkdir(parents=True, exist_ok=True)
        return resolved
    name = f"{base.parent.name.lstrip('.')}-{base.name}-{_digest(base)}"
    stand_in = Path("/var/lib/millstream") / name
    if resolved.exists():
        if any(resolved.iterdir()):
            raise EmbeddedPostgresError(
                f"no unprivileged user can enter {resolved}, and PostgreSQL refuses to run as root: "
                "move it out of this home directory, or run as its owner"
            )
        resolved.rmdir()
    stand_in.mkdir(parents=True, exist_ok=True)
    base.parent.mkdir(parents=True, exist_ok=True)
    base.symlink_to(stand_in)
    return stand_in


def socket_directory(base: Path) -> Path:
    """Return where the socket goes: in `base`, or under /tmp if that path is too long for a socket."""
    near = base / "socket"
    if len(os.fsencode(near)) <= _SOCKET_DIRECTORY_BYTES:
        return near
    return Path(tempfile.gettempdir()) / f"millstream-{_digest(base)}"


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def make_ephemeral_base() -> tuple[Path, int]:
    """Create a directory in memory if there is room, else among the temporary files.

    Returns it with a descriptor whose lock says that it is in use; what killed processes left is swept first.
    """
    roots = [Path(tempfile.gettempdir())]
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _MEMORY_FREE_BYTES:
        roots.insert(0, _MEMORY)
    for root in roots:
        _sweep(root)
    base = Path(tempfile.mkdtemp(prefix=_EPHEMERAL_PREFIX, dir=roots[0]))
    base.chmod(0o711)
    lock = os.open(base, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return base, lock


def _sweep(root: Path) -> None:
    for left in root.glob(f"{_EPHEMERAL_PREFIX}*"):
        try:
            if time.time() - left.stat().st_mtime < _SWEEP_AGE_S:
                continue  # perhaps just being made: its lock comes a moment after it
            descriptor = os.open(left, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:
            pass  # somebody holds it
        finally:
            os.close(descriptor)
