"""Folder of the graphs that OpenVINO has compiled for the embedded server (backends/onnxruntime/compile_cache.py)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

FOLDER_VARIABLE = "VIZWIZ_SERVING_CACHE"  # another folder; empty: no cache


def cache_folder() -> Path | None:
    """The cache of this user: ``VIZWIZ_SERVING_CACHE``, or vizwiz-serving in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if (chosen := os.environ.get(FOLDER_VARIABLE)) is not None:
        return Path(chosen).absolute() if chosen else None
    with suppress(RuntimeError):  # a user without a home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vizwiz-serving").absolute()
    return None


def remove_cached(models: Iterable[str]) -> None:
    """Delete the cached graphs of these Triton models."""
    if folder := cache_folder():
        for model in models:
            for file in folder.glob(f"{model}-*"):
                with suppress(OSError):
                    file.unlink()
