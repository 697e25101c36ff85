"""Fork safety: clients are reset in a forked child, and refuse requests where the parent has used gRPC.

A forked child has none of gRPC's threads. A request there hangs or crashes, even a new client's. It can also disturb
the parent's connection, because both processes share its socket.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Protocol
from weakref import WeakSet

from vizwiz_client.contract.errors import ServerUnavailable


class Resettable(Protocol):
    """The part of a client that a fork breaks: connection, threads and locks."""

    def reset(self) -> None:
        """Drop connection, threads and locks. A closed client remains closed."""


_resettable: WeakSet[Resettable] = WeakSet()
_has_connected = False  # stays True after close(): gRPC ends its threads at some later time
_is_broken = False  # whether gRPC was used before the fork that made this process


def register(resettable: Resettable) -> None:
    """Reset ``resettable`` in every forked child."""
    _resettable.add(resettable)


def check_connectable() -> None:
    """Raise ServerUnavailable where gRPC does not work. Call this before every use of gRPC."""
    global _has_connected
    if _is_broken:
        raise error()
    _has_connected = True


def error() -> ServerUnavailable:
    """The exception of a request in a child whose parent has used gRPC."""
    return ServerUnavailable(
        f"process {os.getpid()} was forked from one that had already used a client, or gRPC, which does not survive a "
        "fork; start processes with multiprocessing's 'spawn' method, or use clients in the children alone"
    )


def _reset_all() -> None:
    global _is_broken
    _is_broken = _is_broken or _has_connected or _others_use_grpc()
    for resettable in list(_resettable):
        _never_destroy(vars(resettable).copy())
        resettable.reset()


def _others_use_grpc() -> bool:
    """Whether other code has created a gRPC channel or server; gRPC has no function that tells."""
    grpc = sys.modules.get("grpc")
    if grpc is None:
        return False
    try:
        kinds = (grpc.Channel, grpc.Server, grpc.aio.Channel, grpc.aio.Server)
    except AttributeError:  # the fork interrupted another thread's import
        return True
    return any(issubclass(kind, kinds) for kind in {type(each) for each in gc.get_objects()})


def _never_destroy(inherited: object) -> None:
    """Leak ``inherited``: gRPC's destructors wait for its threads, or cancel the parent's calls."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


# With its fork support on, gRPC restarts its threads in the child, where they crash if the parent's event loop has open
# calls. gRPC reads the variable when it creates its first channel.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_reset_all)
