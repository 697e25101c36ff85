"""Become the program in the arguments, and let the kernel end that program with the process that asked for it.

    python launch.py PARENT_PID PROGRAM [ARGUMENT ...]

The wish outlives exec (prctl(2), PR_SET_PDEATHSIG); made here, it needs no code between fork and exec of a parent that
may have threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(parent: str, *command: str) -> None:
    """Replace this process by ``command``, which gets SIGTERM when the process ``parent`` ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("the process that asked for this one ended before it started")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
