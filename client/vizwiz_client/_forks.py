"""Forked children: whether gRPC works in them, and clients that start over.

gRPC's threads end with the fork. A request that needs them never returns or crashes, even a new client's. It can
disturb the parent's connection, whose socket both processes share. So a child whose parent has used gRPC sends nothing.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Protocol
from weakref import WeakSet

from vizwiz_client.contract.errors import ServerUnavailable


class Restartable(Protocol):
    """The part of a client that a fork breaks: its connection, threads and locks."""

    def start_over(self) -> None:
        """Begin again without threads and connection; closed remains closed."""


_restartable: WeakSet[Restartable] = WeakSet()
_has_connected = False  # a client of this process; closing it ends gRPC's threads at some later time
_is_broken = False  # gRPC, in this process


def register(restartable: Restartable) -> None:
    """Let ``restartable`` start over in a forked child."""
    _restartable.add(restartable)


def check_connectable() -> None:
    """Raise ServerUnavailable where gRPC does not work; to be called before its first use."""
    global _has_connected
    if _is_broken:
        raise error()
    _has_connected = True


def error() -> ServerUnavailable:
    """The error of a request in a child whose parent has used gRPC."""
    return ServerUnavailable(
        f"process {os.getpid()} was forked from one that had already used a client, or gRPC, which does not survive a "
        "fork; start processes with multiprocessing's 'spawn' method, or use clients in the children alone"
    )


def _start_over() -> None:
    global _is_broken
    _is_broken = _is_broken or _has_connected or _others_use_grpc()
    for restartable in list(_restartable):
        _never_destroy(vars(restartable).copy())
        restartable.start_over()


def _others_use_grpc() -> bool:
    """Whether there is any channel or server; gRPC itself cannot be asked."""
    grpc = sys.modules.get("grpc")
    if grpc is None:
        return False
    try:
        kinds = (grpc.Channel, grpc.Server, grpc.aio.Channel, grpc.aio.Server)
    except AttributeError:  # another thread was importing it, and is gone
        return True
    return any(issubclass(kind, kinds) for kind in {type(each) for each in gc.get_objects()})


def _never_destroy(inherited: object) -> None:
    """Keep ``inherited`` until the process ends: gRPC's destructors wait for its threads, or end the parent's calls."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


# Otherwise gRPC starts its threads again in the child, where they crash while the parent's event loop has calls open.
# Read when gRPC makes its first channel.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_start_over)
