"""What is served: the demo's CLIP and two of OpenAI's sizes, each with a head of VizWiz's size; exported once and kept.

The two have random weights: neither speed nor memory depends on them.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.architectures import write_full_size
from demo import DEMO_CLIP, ensure_demo_dataset
from export.publish import export_run
from export.targets import Precision, Target, recommend, this_machine
from training.artifacts import staged_folder
from training.backbone import FrozenClip, load_clip
from training.dataset import read_split
from training.fit import fit
from training.model import ClipEnsemble, GatedHead, Predictor
from training.recipe import Recipe
from training.run import Run, newest_run, read_run, write_run

ANSWERS = 5_860  # V of the 2023 report's head
MODELS = ("demo", "ViT-B/32", "ViT-L/14@336px")
_RECORDS = 8  # the fit's photos: they are there so that answers differ, and so survive bf16
_NEVER = -60.0  # the bias of an answer that fills the vocabulary up: it costs what any answer costs, and never wins


@dataclass(frozen=True)
class Served:
    """One model, ready to serve in several ways."""

    name: str
    checkpoint: Path
    run: Path
    repository: Path
    target: Target  # of the encoders in the repository
    side: int  # S in pixels


def prepare(name: str, cache: Path, precision: Precision | None = None) -> Served:
    """Write, fit and export the model ``name`` of :data:`MODELS` into ``cache``, unless it is there.

    In ``precision``, or as an export recommends for this machine's CPU.
    """
    folder = cache / name.replace("/", "-")
    target = Target("portable", precision) if precision else recommend(replace(this_machine(), cuda=False))[0]
    checkpoint = DEMO_CLIP if name == "demo" else folder / "clip.pt"
    folder.mkdir(parents=True, exist_ok=True)
    if not checkpoint.exists():
        write_full_size(name, checkpoint)
    repository = folder / f"models-{target.name}"
    with redirect_stdout(sys.stderr):  # what a fit and an export tell is none of the results
        if not any((folder / "wide").glob("[!.]*/run.json")):
            _fit_wide(load_clip(checkpoint), folder, demo_photos(cache))
        run = read_run(newest_run(folder / "wide"))
        export_run(run, str(checkpoint), repository, target)  # keeps what is published already
    return Served(name, checkpoint, run.folder, repository, target, int(run.clips[0]["image_size"]))


def demo_photos(cache: Path) -> Path:
    """A small VizWiz folder of drawn photos, 640 x 480 pixels."""
    return ensure_demo_dataset(cache / "data", train=48, val=_RECORDS, test=0)


def _fit_wide(clip: FrozenClip, folder: Path, data: Path) -> None:
    """Fit a head on a few photos, and write a run whose vocabulary is filled up to :data:`ANSWERS`."""
    train, val = (read_split(data, split, limit=_RECORDS) for split in ("train", "val"))
    run = read_run(fit(train, val, clip, Recipe(epochs=20), folder / "runs", folder / "features"))
    answers = run.answers + [f"filler {number}" for number in range(ANSWERS - len(run.answers))]
    predictor = Predictor([_widened(run)])
    config = {key: value for key, value in run.config.items() if key not in ("format", "files")}
    with staged_folder(folder / "wide" / run.folder.name) as staging:
        write_run(staging, config, ClipEnsemble([predictor]), answers)


def _widened(run: Run) -> GatedHead:
    narrow = run.load_predictor().heads[0]
    weights = narrow.state_dict()
    wide = GatedHead(run.clips[0]["embed_dim"], ANSWERS, len(run.answer_types)).eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in wide.state_dict().items():
            if parameter.shape == weights[name].shape:
                parameter.copy_(weights[name])
                continue
            parameter.fill_(_NEVER if name == "answer.2.bias" else 0.0)
            parameter[: len(run.answers)] = weights[name]
    return wide
