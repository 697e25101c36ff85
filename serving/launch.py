"""Set limits, then exec the program in the arguments, so that it ends with its parent.

    python launch.py PARENT_PID PROGRAM [ARGUMENT ...]

PR_SET_PDEATHSIG survives exec: prctl(2). A program of its own sets it, because code between fork and exec is not safe
in a parent with threads.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

NO_CORE = 1  # byte: too small for a file, and the only limit that a pipe in core_pattern respects (fs/coredump.c)
STACK_BYTES = 256 << 20  # per thread; only used pages take memory
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def limit() -> None:
    """Set the limits of this process and of its children.

    No core dump: it would write photos and questions to disk. Large stacks: Triton copies an HTTP body of a form, which
    is curl's default content type, to the stack twice, and crashes where it does not fit.
    """
    core = _at_most(NO_CORE, resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (core, core))
    stack = _at_most(STACK_BYTES, resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, resource.getrlimit(resource.RLIMIT_STACK)[1]))


def _at_most(wanted: int, kind: int) -> int:
    """``wanted``, or the hard limit where that is less: only root may raise it."""
    _, hard = resource.getrlimit(kind)
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def main(parent: str, *command: str) -> None:
    """Replace this process by ``command``, which gets SIGTERM when the parent's thread that started it ends."""
    limit()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("the parent process ended before this one started")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
