"""The run folder: what a fit leaves behind and export starts from.

=====================  ===========================================================
``run.json``           recipe, versions, and digests of the data, CLIP and files
``head.safetensors``   the weights of the best epoch
``answers.txt``        the answer list, one a line, in the order of the head's outputs
``metrics.json``       the scores of every epoch, of the best one and of a constant
``loss_curves.png``    training and validation loss, and accuracy, per epoch
=====================  ===========================================================
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from training.head import GatedHead
from training.storage import digest_of, file_digest, write_json

RUN_FORMAT = 1
RUN_FILE = "run.json"
HEAD_FILE = "head.safetensors"
ANSWERS_FILE = "answers.txt"
METRICS_FILE = "metrics.json"
CURVES_FILE = "loss_curves.png"


class RunError(Exception):
    """A run folder that is missing, incomplete, altered, or made by another version."""


@dataclass(frozen=True)
class Run:
    """A run folder that was read and verified."""

    folder: Path
    config: dict[str, Any]
    answers: list[str]

    @property
    def answer_types(self) -> list[str]:
        """The answer types, in the order of the head's outputs."""
        return list(self.config["answer_types"])

    @property
    def clip_source(self) -> str:
        """The name or path of the CLIP whose features the head was fitted on."""
        return str(self.config["clip"]["source"])

    @property
    def clip_digest(self) -> str:
        """The digest of that CLIP's weights."""
        return str(self.config["clip"]["sha256"])

    @property
    def digest(self) -> str:
        """What identifies the fitted head: its weights, its answers and types, and the CLIP it was fitted on."""
        files = self.config["files"]
        return digest_of(files[HEAD_FILE], files[ANSWERS_FILE], *self.answer_types, self.clip_digest)

    def load_head(self) -> GatedHead:
        """Build the fitted head, in evaluation mode.

        Raises:
            RunError: the weights do not fit the configuration.
        """
        head = GatedHead(
            self.config["clip"]["width"], len(self.answers), len(self.answer_types), self.config["recipe"]["hidden"]
        )
        try:
            head.load_state_dict(safetensors.torch.load_file(self.folder / HEAD_FILE))
        except (SafetensorError, RuntimeError) as error:
            raise RunError(f"{self.folder / HEAD_FILE} does not hold this run's head ({error}); fit again") from error
        return head.eval().requires_grad_(False)


def write_run(folder: Path, config: dict[str, Any], head: GatedHead, answers: list[str]) -> None:
    """Write a run's head, answers and configuration, with the digests of both files, into ``folder``."""
    safetensors.torch.save_file(head.state_dict(), folder / HEAD_FILE)
    (folder / ANSWERS_FILE).write_text("".join(f"{answer}\n" for answer in answers), encoding="utf-8")
    digests = {name: file_digest(folder / name) for name in (HEAD_FILE, ANSWERS_FILE)}
    write_json(folder / RUN_FILE, {"format": RUN_FORMAT, **config, "files": digests})


def read_run(folder: Path) -> Run:
    """Read and verify a run folder.

    Raises:
        RunError: the message says what is wrong and what to do.
    """
    try:
        config = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{folder} is not a run folder: it has no {RUN_FILE}. Make one with `python -m training.fit`."
        ) from None
    except ValueError as error:
        raise RunError(f"{folder / RUN_FILE} is not JSON ({error}); fit again") from None
    if config.get("format") != RUN_FORMAT:
        raise RunError(
            f"{folder} has run format {config.get('format')!r}, this version reads {RUN_FORMAT}: fit again with "
            "`python -m training.fit`"
        )
    for name, expected in config["files"].items():
        path = folder / name
        if not path.is_file() or file_digest(path) != expected:
            raise RunError(f"{path} is missing or was changed after the fit (its digest differs); fit again")
    answers = (folder / ANSWERS_FILE).read_text(encoding="utf-8").split("\n")[:-1]
    return Run(folder, config, answers)


def newest_run(runs: Path) -> Path:
    """Return the folder of the latest fit in ``runs``: their names begin with the time.

    Raises:
        RunError: there is none.
    """
    folders = sorted(path.parent for path in runs.glob(f"[!.]*/{RUN_FILE}"))
    if not folders:
        raise RunError(f"no run in {runs}/: make one with `python -m training.fit`")
    return folders[-1]
