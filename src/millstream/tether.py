"""Run a program so that it cannot outlive the process that started it.

A script of its own, run by path with nothing but the standard library, because what it starts may be
PostgreSQL, Envoy or a Python process alike:

    python -I -S tether.py PARENT SIGNAL UID GID PROGRAM [ARGUMENT ...]

On Linux it gives up its user (UID -1: keeps it), asks the kernel for SIGNAL at its parent's death and becomes
PROGRAM. The order matters: the kernel forgets the request when the user changes. Elsewhere it stays, as the
parent of PROGRAM, passes signals on, and watches for its own parent.

Exit codes: PROGRAM's own; 127 when PROGRAM cannot be started or the user cannot be changed.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_S = 0.2
_GRACE_S = 10.0


def command(
    program: Sequence[str], *, at_death: signal.Signals, uid: int | None = None, gid: int | None = None
) -> list[str]:
    """Return the argument list that runs `program` tethered to the calling process.

    `at_death` is what the program receives when the caller is gone. The thread that starts it must live as
    long as the caller does (the main thread): the kernel looks at the thread.
    """
    script = [sys.executable, "-I", "-S", os.path.abspath(__file__)]  # noqa: PTH100 (pathlib costs 5 ms a start)
    user = [str(-1 if uid is None else uid), str(-1 if gid is None else gid)]
    return [*script, str(os.getpid()), str(int(at_death)), *user, *program]


def main(arguments: Sequence[str]) -> int:
    """Become the program, or run it where the kernel cannot watch for us."""
    parent, at_death, uid, gid = (int(argument) for argument in arguments[:4])
    program = list(arguments[4:])
    try:
        if sys.platform == "linux" and not os.environ.pop("MILLSTREAM_TETHER_POLL", None):
            _become_mortal(at_death, uid, gid)
            if os.getppid() != parent:  # it died before the request
                return 0
            os.execvp(program[0], program)  # noqa: S606
        return _watch(program, parent, at_death, uid, gid)
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror or error}\n")
        return 127


def _drop(uid: int, gid: int) -> None:
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def _become_mortal(number: int, uid: int, gid: int) -> None:
    # Here, because other systems do without; and first, because the new user may not be able to read it.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    _drop(uid, gid)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def _watch(program: list[str], parent: int, at_death: int, uid: int, gid: int) -> int:
    """Start the program and poll: a parent's id cannot leak into other children, as a pipe's end can."""
    child = os.fork()
    if child == 0:
        try:
            _drop(uid, gid)
            os.execvp(program[0], program)  # noqa: S606
        except OSError as error:
            sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        os._exit(127)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda received, _frame: os.kill(child, received))
    deadline: float | None = None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return max(os.waitstatus_to_exitcode(status), -os.waitstatus_to_exitcode(status))
        if deadline is None and os.getppid() != parent:
            os.kill(child, at_death)
            deadline = time.monotonic() + _GRACE_S
        elif deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
