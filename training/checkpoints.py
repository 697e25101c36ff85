"""What a fit has reached, epoch by epoch, so that a killed one goes on with the same bits.

The states are tensors, numbers and texts alone, and are read by ``torch.load``'s weights-only reader.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from training.storage import digest_of, staged_file

UNFINISHED = ".unfinished"  # folder within the runs; its name begins with a dot, so that it is never taken for a run


class Checkpoints:
    """The states of one fit, in a folder that is named by what the fit is made from."""

    def __init__(self, runs: Path, made_from: dict[str, Any], *, resume: bool) -> None:
        """Find the folder among ``runs``; without ``resume``, what an earlier fit of the same left there is deleted."""
        key = digest_of(json.dumps(made_from, sort_keys=True, default=str))[:16]
        self.folder = runs / UNFINISHED / key
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif not self.folder.exists():
            print("nothing to resume: no fit of these settings and this data was interrupted; starting at epoch 1")
        self.folder.mkdir(parents=True, exist_ok=True)

    def load(self, name: str) -> dict[str, Any] | None:
        """Read the state ``name``; None where there is none, or where it cannot be read: the fit then starts over."""
        path = self.folder / f"{name}.pt"
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except FileNotFoundError:
            return None
        except (UnpicklingError, RuntimeError, EOFError) as error:
            print(f"{path} cannot be read ({error}): starting over")
            return None
        return state

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write the state ``name``, whole or not at all."""
        with staged_file(self.folder / f"{name}.pt") as staging:
            torch.save(state, staging)

    def clear(self) -> None:
        """Delete the states: the fit is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()
