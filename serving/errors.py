"""The error of this package."""

from __future__ import annotations


class ServingError(RuntimeError):
    """The server cannot start, or ended by itself; the text says why and what to do."""
