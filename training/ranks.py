"""Several processes that share a job, as ``torchrun`` starts them; one process alone is a world of one.

``torchrun`` sets RANK, WORLD_SIZE and LOCAL_RANK, and ends every process when one fails:
https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

_PATIENCE = timedelta(days=7)  # one process may wait for the others' photos for hours; torchrun notices those that die
_T = TypeVar("_T")


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that share the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Number of this process on its machine, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def gather(value: _T) -> list[_T]:
    """Wait for every process and return what each of them gave, by rank."""
    if world_size() == 1:
        return [value]
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)
    values: list[_T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def leave() -> None:
    """Leave the group of processes at the end of a command."""
    if dist.is_initialized():
        dist.destroy_process_group()
