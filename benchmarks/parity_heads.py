"""Whether the parity gate passes correct graphs: 20 heads on the demo's CLIP, each exported at fp32, bf16 and int8.

    python -m benchmarks.parity_heads

Nothing is wrong with any of these graphs, so a refusal is a fault of the gate. Recipes, seeds and data differ: the
demo's data, the same with half of the unanswerable photos black or noise, its first 1,000 records, and heads that give
every question the same answerability, log-odds of -12.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from demo import DEMO_CLIP, ensure_demo_dataset
from export import publish
from export.comparison import ParityError
from export.parity import PARITY_FILE, ParityResult, check_parity
from export.parity_inputs import Inputs, drawn_inputs, random_inputs, run_inputs
from export.publish import export_run
from export.targets import Target
from training.backbone import FrozenClip, load_clip
from training.dataset import read_split
from training.fit import fit
from training.model import Predictor
from training.recipe import RECIPES
from training.run import Run, read_run, write_run

TARGETS = [Target("portable", "fp32"), Target("portable", "bf16"), Target("portable", "int8")]
DEMO, BLACK, NOISE, FEW, CONSTANT = "demo", "half black", "half noise", "1,000 records", "constant"
HEADS = [
    *((DEMO, "report", seed) for seed in range(3)),
    (DEMO, "paper", 0),
    *((DEMO, "best", seed) for seed in range(3)),
    *((data, recipe, 0) for data in (BLACK, NOISE, FEW, CONSTANT) for recipe in ("report", "best")),
    *((data, "report", 1) for data in (BLACK, NOISE, FEW)),
    *((data, "best", 1) for data in (BLACK, NOISE)),
]
LOG_ODDS = -12.0
SPLITS = ("train", "val")


def spoil(demo: Path, folder: Path, photo: Callable[[tuple[int, int]], Image.Image]) -> Path:
    """Make ``folder`` the data in ``demo``, the first half of its unanswerable photos each replaced by ``photo``."""
    (folder / "Annotations").mkdir(parents=True)
    for name in SPLITS:
        (folder / name).mkdir()
        annotations = demo / "Annotations" / f"{name}.json"
        (folder / "Annotations" / annotations.name).write_bytes(annotations.read_bytes())
        split = read_split(demo, name)
        unanswerable = [record.image for record in split.records if not record.answerable]
        spoiled = {*unanswerable[: len(unanswerable) // 2]}
        for path in split.photo_paths():
            if path.name in spoiled:
                with Image.open(path) as original:
                    photo(original.size).save(folder / name / path.name)
            else:
                (folder / name / path.name).symlink_to(path.resolve())
    return folder


def black(size: tuple[int, int]) -> Image.Image:
    """A lens that is covered."""
    return Image.new("RGB", size)


def noise(size: tuple[int, int]) -> Image.Image:
    """A photo in the dark."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def with_constant_answerability(run: Run, folder: Path) -> Run:
    """Rewrite ``run`` in ``folder``, all its heads giving the same log-odds."""
    ensemble = run.load_ensemble()
    with torch.no_grad():
        for member in ensemble.members:
            assert isinstance(member, Predictor)
            for head in member.heads:
                head.get_parameter("answerable.weight").zero_()
                head.get_parameter("answerable.bias").fill_(LOG_ODDS)
    folder.mkdir()
    config = {key: value for key, value in run.config.items() if key not in ("format", "files")}
    write_run(folder, config, ensemble, run.answers)
    return read_run(folder)


@contextlib.contextmanager
def encoders_measured_once() -> Iterator[None]:
    """Let exports of the same encoders compare these with PyTorch once for each set of inputs."""
    known: dict[tuple[Any, ...], ParityResult] = {}

    def check_once(image: Path, text: Path, target: Target, model: FrozenClip, inputs: list[Inputs]) -> ParityResult:
        key = target, *map(id, inputs)  # which the caches below keep alive
        if key not in known:
            known[key] = check_parity(image, text, target, model, inputs)
        return known[key]

    with contextlib.ExitStack() as stack:
        for make in (random_inputs, drawn_inputs, run_inputs):
            stack.enter_context(patch.object(publish, make.__name__, cache(make)))
        stack.enter_context(patch.object(publish, "check_parity", check_once))
        yield


def verdict(run: Run, clip: FrozenClip, repository: Path, target: Target) -> tuple[bool, str]:
    """Whether ``run`` can be exported, and its largest errors: features, probabilities, log-probabilities."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            names = export_run(run, clip, repository, target, recheck=True)
    except ParityError as error:
        return False, f"REFUSED: {error}"
    report = json.loads((repository / names.head / PARITY_FILE).read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = report["comparisons"]
    features, probabilities = ([row for row in rows if (row["log_error"] is None) is kind] for kind in (True, False))
    errors = [max(row["relative_error"] for row in part) for part in (features, probabilities)]
    logs = max(row["log_error"] for row in probabilities)
    state = "passed" if report["passed"] else f"passed in {report['encoders']['precision']}"
    return True, f"{state} {errors[0]:.1e} / {errors[1]:.1e} / {logs:.1e}"


def main() -> int:
    """Print a table; returns 1 where a graph was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"), help="encoded features")
    arguments = parser.parse_args()
    clip, refused, started = load_clip(DEMO_CLIP), 0, time.monotonic()
    demo = ensure_demo_dataset()
    print("largest error of features / probabilities / log-probabilities of the head")
    print(f"{'data':<15}{'recipe':<8}{'seed':<6}" + "".join(f"{target.precision:<40}" for target in TARGETS))
    with tempfile.TemporaryDirectory() as temporary, encoders_measured_once():
        place = Path(temporary)
        folders = {BLACK: spoil(demo, place / "black", black), NOISE: spoil(demo, place / "noise", noise)}
        for data, name, seed in HEADS:
            limit = 1000 if data == FEW else None
            train, val = (read_split(folders.get(data, demo), split, limit=limit) for split in SPLITS)
            with contextlib.redirect_stdout(io.StringIO()):
                folder = fit(
                    train,
                    val,
                    clip,
                    replace(RECIPES[name], seed=seed),
                    place / "runs",
                    arguments.cache,
                    baselines=False,
                )
            run = read_run(folder)
            if data == CONSTANT:
                run = with_constant_answerability(run, place / f"constant-{name}")
            found = [verdict(run, clip, place / "triton_models", target) for target in TARGETS]
            refused += sum(not passed for passed, _ in found)
            print(f"{data:<15}{name:<8}{seed:<6}" + "".join(f"{text:<40}" for _, text in found), flush=True)
    graphs = len(HEADS) * len(TARGETS)
    print(f"{refused} of {graphs} graphs refused, in {time.monotonic() - started:.0f} s")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
