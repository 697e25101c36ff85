"""The run folder: what a fit leaves behind and export starts from.

==========================  ===========================================================
``run.json``                recipe, versions, and digests of the data, CLIP and files
``head.safetensors``        the weights of every head, and the calibration of answerability
``baselines.safetensors``   the weights of both baselines, unless the fit was told `--no-baselines`
``answers.txt``             the answer list, one a line, in the order of the head's outputs
``metrics.json``            the scores of every epoch, of the best one and of the baselines
``metrics.jsonl``           the scores of every epoch, a line each, as they were recorded during the fit
``tensorboard/``            the same, for TensorBoard
``loss_curves.png``         training and validation loss, and accuracy, per epoch
``MODEL_CARD.md``           what the head was made from, how good it is, and what it must not be used for
``evaluation-*/``           what `python -m training.evaluate` adds
==========================  ===========================================================
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from training.artifacts import digest_of, file_digest, write_json
from training.baselines import Baseline, load_baselines, save_baselines
from training.head import GatedHead
from training.predictor import ClipEnsemble, Predictor
from training.recipe import JOINED
from training.splits import HOLDOUT

DEFAULT_RUNS = Path("runs")
RUN_FORMAT = 3
RUN_FILE = "run.json"
HEAD_FILE = "head.safetensors"
ANSWERS_FILE = "answers.txt"
BASELINES_FILE = "baselines.safetensors"
METRICS_FILE = "metrics.json"
CURVES_FILE = "loss_curves.png"
CARD_FILE = "MODEL_CARD.md"
_KEYS = ("files", "data", "holdout", "recipe", "clips", "vocabulary", "type_set", "answer_types")


class RunError(Exception):
    """A run folder that is missing, incomplete, altered, or made by another version."""


class NoRunError(RunError):
    """No fit has been made yet."""


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
    def clips(self) -> list[dict[str, Any]]:
        """What is known of each CLIP whose features the heads were fitted on: source, sha256, side, width."""
        return list(self.config["clips"])

    @property
    def clip_source(self) -> str:
        """The name or path of the one CLIP of this run.

        Raises:
            RunError: the run was fitted on several CLIPs.
        """
        return str(self._only_clip["source"])

    @property
    def clip_digest(self) -> str:
        """The digest of that CLIP's weights.

        Raises:
            RunError: the run was fitted on several CLIPs.
        """
        return str(self._only_clip["sha256"])

    @property
    def _only_clip(self) -> dict[str, Any]:
        if len(self.clips) > 1:
            sources = " and ".join(clip["source"] for clip in self.clips)
            raise RunError(
                f"{self.folder} was fitted on {len(self.clips)} CLIPs ({sources}): such a run can be evaluated, but "
                "not exported; fit on one --clip to export"
            )
        return self.clips[0]

    @property
    def digest(self) -> str:
        """What identifies the fitted heads: their weights, their answers and types, and the CLIPs they look through."""
        files = self.config["files"]
        clips = [clip["sha256"] for clip in self.clips]
        return digest_of(files[HEAD_FILE], files[ANSWERS_FILE], *self.answer_types, *clips)

    def load_predictor(self) -> Predictor:
        """Build what predicts from the features of the one CLIP of this run, in evaluation mode.

        Raises:
            RunError: the run was fitted on several CLIPs, or the weights do not fit the configuration.
        """
        _ = self._only_clip
        predictor = self.load_ensemble().members[0]
        assert isinstance(predictor, Predictor)
        return predictor

    def load_ensemble(self) -> ClipEnsemble:
        """Build what predicts from the features of all CLIPs of this run (``clips``), in evaluation mode.

        Raises:
            RunError: the weights do not fit the configuration.
        """
        recipe = self.config["recipe"]
        sizes = len(self.answers), len(self.answer_types), recipe["hidden"]
        source = recipe["answerable_from"]
        members = [
            Predictor([GatedHead(clip["embed_dim"], *sizes, answerable_from=source) for _ in range(recipe["folds"])])
            for clip in self.clips
        ]
        ensemble = ClipEnsemble(members)
        try:
            ensemble.load_state_dict(safetensors.torch.load_file(self.folder / HEAD_FILE))
        except (SafetensorError, RuntimeError) as error:
            raise RunError(f"{self.folder / HEAD_FILE} does not hold this run's heads ({error}); fit again") from error
        return ensemble.eval().requires_grad_(False)

    def load_baselines(self) -> dict[str, Baseline]:
        """The baselines that were fitted with the run, by name; none where the fit was told so."""
        return load_baselines(self.folder / BASELINES_FILE) if BASELINES_FILE in self.config["files"] else {}


def write_run(
    folder: Path,
    config: dict[str, Any],
    ensemble: ClipEnsemble,
    answers: list[str],
    baselines: dict[str, Baseline] | None = None,
) -> None:
    """Write a run's heads, answers, baselines and configuration, with the digests of the files, into ``folder``."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in ensemble.state_dict().items()}
    (folder / HEAD_FILE).write_bytes(safetensors.torch.save(weights))  # save_file's are for the owner alone
    (folder / ANSWERS_FILE).write_text("".join(f"{answer}\n" for answer in answers), encoding="utf-8")
    names = [HEAD_FILE, ANSWERS_FILE]
    if baselines:
        save_baselines(baselines, folder / BASELINES_FILE)
        names.append(BASELINES_FILE)
    digests = {name: file_digest(folder / name) for name in names}
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
    found = config.get("format") if isinstance(config, dict) else None
    if found != RUN_FORMAT:
        raise RunError(
            f"{folder} has run format {found!r}, this version reads {RUN_FORMAT}: fit again with "
            "`python -m training.fit`"
        )
    if missing := [key for key in _KEYS if key not in config]:
        raise RunError(f"{folder / RUN_FILE} lacks {', '.join(missing)}: it was changed after the fit; fit again")
    config["recipe"].setdefault("answerable_from", JOINED)  # older runs had no choice
    for name, expected in config["files"].items():
        path = folder / name
        if not path.is_file() or file_digest(path) != expected:
            raise RunError(f"{path} is missing or was changed after the fit (its digest differs); fit again")
    answers = (folder / ANSWERS_FILE).read_text(encoding="utf-8").split("\n")[:-1]
    return Run(folder, config, answers)


def read_scores(folder: Path) -> dict[str, Any]:
    """Read the scores on val: ``best`` (of the run), ``majority_baseline``, ``baselines``, ``history`` (of each epoch).

    Raises:
        RunError: ``metrics.json`` is missing or unreadable.
    """
    path = folder / METRICS_FILE
    try:
        scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); fit again") from None
    return scores


def annotations_of_fit(config: dict[str, Any]) -> dict[str, str]:
    """The digest of the annotation file of each labelled split, by which other data are told from those of the fit."""
    return {"val": config["data"]["val"]["sha256"], HOLDOUT: config["data"]["train"]["sha256"]}


def newest_run(runs: Path) -> Path:
    """Return the folder of the latest fit in ``runs``: their names begin with the time.

    Raises:
        NoRunError: there is none.
    """
    folders = sorted(path.parent for path in runs.glob(f"[!.]*/{RUN_FILE}"))
    if not folders:
        raise NoRunError(f"no run in {runs}/: make one with `python -m training.fit`")
    return folders[-1]
