"""Become the program in the arguments, which dumps no core and ends with the process that asked for it.

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
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(parent: str, *command: str) -> None:
    """Replace this process by ``command``, which gets SIGTERM when the process ``parent`` ends.

    No core: a crash would write the photos and questions in memory to disk.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (NO_CORE, NO_CORE))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("the process that asked for this one ended before it started")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
