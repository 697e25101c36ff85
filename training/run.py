"""The run folder, the result of a fit.

==========================  ===========================================================
``run.json``                recipe, versions, and digests of data, CLIPs and files
``head.safetensors``        weights of every head; the calibration of answerability is part of them
``baselines.safetensors``   weights of both baselines, except after `--no-baselines`
``answers.txt``             answer list, one a line, in the order of the head's outputs
``metrics.json``            scores on val: of the run, of the baselines and of every epoch
``metrics.jsonl``           scores of every epoch, written during the fit
``tensorboard/``            the same for TensorBoard
``loss_curves.png``         loss and VQA accuracy per epoch
``MODEL_CARD.md``           what the head was made from, its scores and its limits
``evaluation-*/``           results of `python -m training.evaluate`
==========================  ===========================================================
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from training.artifacts import digest_of, file_digest, write_json
from training.baselines import Baseline, load_baselines, save_baselines
from training.dataset import HOLDOUT
from training.model import ClipEnsemble, GatedHead, Predictor, QualityHead
from training.recipe import NO, YES

DEFAULT_RUNS = Path("runs")
RUN_FORMAT = 4
RUN_FILE = "run.json"
HEAD_FILE = "head.safetensors"
ANSWERS_FILE = "answers.txt"
BASELINES_FILE = "baselines.safetensors"
METRICS_FILE = "metrics.json"
EPOCHS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"
CURVES_FILE = "loss_curves.png"
CARD_FILE = "MODEL_CARD.md"
_KEYS = ("files", "data", "holdout", "recipe", "clips", "vocabulary", "type_set", "answer_types", "quality", "wording")


class RunError(Exception):
    """A run folder that is missing, incomplete, altered, or of another version."""


class NoRunError(RunError):
    """No run folder exists."""


@dataclass(frozen=True)
class Run:
    """A run folder that was read and verified."""

    folder: Path
    config: dict[str, Any]  # the content of run.json
    answers: list[str]

    @property
    def answer_types(self) -> list[str]:
        """Answer types, in the order of the head's outputs."""
        return list(self.config["answer_types"])

    @property
    def quality_issues(self) -> list[str]:
        """Issues of photo quality, in the order of the head's outputs; empty where the fit had no votes on them."""
        return list((self.config["quality"] or {"issues": ()})["issues"])

    @property
    def wording(self) -> dict[str, Any]:
        """Thresholds that choose the sentences shown to people; see :mod:`vizwiz_client.contract.wording`."""
        return dict(self.config["wording"])

    @property
    def clips(self) -> list[dict[str, Any]]:
        """``source``, ``sha256``, ``image_size``, ``squash`` and ``embed_dim`` of each CLIP of the fit."""
        return list(self.config["clips"])

    def check_clips(self, sources: Sequence[str], digests: Sequence[str] | None = None) -> None:
        """Check that CLIPs are those of the fit, in its order.

        Args:
            sources: their names or checkpoint files.
            digests: of their weights; None checks their number alone, before they are loaded.

        Raises:
            RunError: one is missing, or another one.
        """
        fitted = self.clips
        remedy = f"give {', then '.join(clip['source'] for clip in fitted)} with --clip, or fit again"
        if len(sources) != len(fitted):
            raise RunError(f"{self.folder} was fitted on {len(fitted)} CLIP(s), got {len(sources)}: {remedy}")
        for number, (source, digest, clip) in enumerate(zip(sources, digests or (), fitted, strict=False), 1):
            if digest != clip["sha256"]:
                of_several = f" as number {number}" if len(fitted) > 1 else ""
                raise RunError(
                    f"{self.folder} was fitted on the CLIP {clip['sha256'][:12]} ({clip['source']}){of_several}, but "
                    f"{source} is {digest[:12]}: {remedy}"
                )

    @property
    def digest(self) -> str:
        """Identity of the fitted heads: digest of their weights, labels, thresholds and CLIPs."""
        files = self.config["files"]
        clips = [clip["sha256"] for clip in self.clips]
        labels = [*self.answer_types, *self.quality_issues, json.dumps(self.wording, sort_keys=True)]
        return digest_of(files[HEAD_FILE], files[ANSWERS_FILE], *labels, *clips)

    def load_ensemble(self) -> ClipEnsemble:
        """Load the heads of all CLIPs of the run, in the order of ``clips``, in evaluation mode.

        Raises:
            RunError: the weights do not match the configuration.
        """
        recipe = self.config["recipe"]
        sizes = len(self.answers), len(self.answer_types), recipe["hidden"]
        source = recipe["answerable_from"]
        issues = len(self.quality_issues)
        quality_heads = self.config["quality"]["heads"] if issues else 0
        reads_quality = recipe.get("answerable_quality", NO) == YES  # runs before the setting do not

        def gated_head(dim: int) -> GatedHead:
            quality = QualityHead(dim, issues) if reads_quality else None
            return GatedHead(dim, *sizes, answerable_from=source, quality=quality)

        members = [
            Predictor(
                [gated_head(clip["embed_dim"]) for _ in range(recipe["folds"])],
                [QualityHead(clip["embed_dim"], issues) for _ in range(quality_heads)],
            )
            for clip in self.clips
        ]
        ensemble = ClipEnsemble(members)
        try:
            ensemble.load_state_dict(safetensors.torch.load_file(self.folder / HEAD_FILE))
        except (SafetensorError, RuntimeError) as error:
            raise RunError(f"{self.folder / HEAD_FILE} does not match {RUN_FILE} ({error}); fit again") from error
        return ensemble.eval().requires_grad_(False)

    def load_baselines(self) -> dict[str, Baseline]:
        """Load the baselines by name; none after ``--no-baselines``."""
        return load_baselines(self.folder / BASELINES_FILE) if BASELINES_FILE in self.config["files"] else {}


def write_run(
    folder: Path,
    config: dict[str, Any],
    ensemble: ClipEnsemble,
    answers: list[str],
    baselines: dict[str, Baseline] | None = None,
) -> None:
    """Write heads, answers, baselines and configuration, with the digests of the files, into ``folder``."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in ensemble.state_dict().items()}
    (folder / HEAD_FILE).write_bytes(safetensors.torch.save(weights))  # save_file ignores the umask
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
        RunError: it is missing, incomplete, altered, or of another version.
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
    """Digest of the fit's annotation file of each labelled split."""
    return {"val": config["data"]["val"]["sha256"], HOLDOUT: config["data"]["train"]["sha256"]}


def newest_run(runs: Path) -> Path:
    """Folder of the latest fit in ``runs``, by the time that its run.json records.

    Raises:
        NoRunError: there is none.
    """
    folders = [path.parent for path in runs.glob(f"[!.]*/{RUN_FILE}")]
    if not folders:
        raise NoRunError(f"no run in {runs}/: make one with `python -m training.fit`")
    return max(folders, key=lambda folder: (_created(folder), folder.name))


def _created(folder: Path) -> str:
    """The time of a fit in ISO 8601; empty where run.json is damaged."""
    try:
        return str(json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextmanager
def epoch_log(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Log the scores of each epoch in ``folder``, as JSON Lines and as TensorBoard events.

    Yields:
        A function that writes a row: ``epoch``, the fold and the CLIP if there are several, and scores as floats. NaN
        becomes null.
    """
    with (folder / EPOCHS_FILE).open("w", encoding="utf-8") as lines, _scalars(folder) as write_scalars:

        def write(row: dict[str, Any]) -> None:
            finite = {key: _null_if_not_finite(value) for key, value in row.items()}
            lines.write(json.dumps(finite, ensure_ascii=False) + "\n")
            lines.flush()
            prefix = "".join(f"{key} {row[key]}/" for key in ("clip", "fold") if key in row)
            write_scalars(row["epoch"], {f"{prefix}{key}": value for key, value in finite.items()})

        yield write


def log_quality(folder: Path, epoch: int, scores: dict[str, Any]) -> None:
    """Log the scores of each quality issue as TensorBoard events of the kept epoch."""
    with _scalars(folder) as write:
        write(epoch, {f"quality/{issue} {key}": x for issue, row in scores["issues"].items() for key, x in row.items()})


@contextmanager
def _scalars(folder: Path) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """Write an event file for TensorBoard: a step, and values by tag, of which the finite floats are written."""
    (folder / EVENTS_FOLDER).mkdir(exist_ok=True)
    # On a full disk, the background thread of SummaryWriter would print a traceback.
    path = folder / EVENTS_FOLDER / f"events.out.tfevents.{time.time():.6f}"
    with closing(RecordWriter(path.open("wb"))) as events:

        def write_event(event: Event) -> None:
            events.write(event.SerializeToString())
            events.flush()

        def write(step: int, values: dict[str, Any]) -> None:
            scalars = [
                Summary.Value(tag=tag, simple_value=value)
                for tag, value in values.items()
                if isinstance(value, float) and math.isfinite(value)
            ]
            write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

        write_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        yield write


def _null_if_not_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """Read the scores of every epoch from ``metrics.jsonl``."""
    lines = (folder / EPOCHS_FILE).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
