"""Become the program in the arguments, which has our limits and ends with the process that asked for it.

    python launch.py PARENT_PID PROGRAM [ARGUMENT ...]

The wish outlives exec (prctl(2), PR_SET_PDEATHSIG); made here, it needs no code between fork and exec of a parent that
may have threads.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

NO_CORE = 1  # byte: too small for a file, and the one limit that a pipe in core_pattern heeds (fs/coredump.c)
STACK_BYTES = 256 << 20  # of a thread; only what is used is there
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def limit() -> None:
    """Set the limits of this process and of what it starts.

    No core: a crash would write the photos and questions in memory to disk. Large stacks: Triton's HTTP puts a body
    that says it is a form, as curl's do unless told otherwise, on the stack twice, and ends where there is no room.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (NO_CORE, NO_CORE))
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    stack = STACK_BYTES if most == resource.RLIM_INFINITY else min(STACK_BYTES, most)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, most))


def main(parent: str, *command: str) -> None:
    """Replace this process by ``command``, which gets SIGTERM when the process ``parent`` ends."""
    limit()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("the process that asked for this one ended before it started")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
