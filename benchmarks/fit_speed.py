"""Time and peak memory of a fit at VizWiz's full size, on made-up features.

    python benchmarks/fit_speed.py                     # the report's recipe: 10 epochs, half a minute on two cores
    python benchmarks/fit_speed.py --recipe best --device cuda
    python benchmarks/fit_speed.py --bits --kill       # and again, killed three times: the weights must be the same

20,523 training and 4,319 validation records, 768 features of each encoder (ViT-L/14@336px), 5,860 answers. Every epoch
is scored and checkpointed, and the baselines are fitted, as `python -m training.fit` does; encoding is left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from training.answer_types import TYPE_SETS
from training.artifacts import digest_of
from training.baselines import fit_baselines
from training.checkpoints import Checkpoints
from training.dataset import ANSWER_TYPES, Record
from training.fitting import Examples, scores
from training.folds import fit_predictor, predict
from training.predictor import ClipEnsemble
from training.recipe import RECIPES, Recipe
from training.splits import fold_rows
from training.targets import AnswerScores, make_targets
from training.vocabulary import Vocabulary, build_vocabulary

TRAIN, VAL, FEATURES, ANSWERS = 20_523, 4_319, 768, 5_860
EPOCH = "epoch"  # what a line about an epoch says before its number


def make_records(count: int, first: int, rng: np.random.Generator) -> list[Record]:
    """Records whose answers are as unevenly frequent as real ones; the first ones of all use every answer once."""
    rank = np.minimum(rng.pareto(0.4, (count, 3)), ANSWERS - 1).astype(int)
    records = []
    for number in range(count):
        a, b, c = (f"answer {n}" for n in rank[number])
        if first == 0 and number < ANSWERS:
            a = f"answer {number}"
        answers = (a, a, a, a, a, b, b, b, c, c)
        kind = ANSWER_TYPES[rank[number, 0] % len(ANSWER_TYPES)]
        records.append(Record(f"{first + number}.jpg", "?", answers, (None,) * 10, kind, kind != "unanswerable"))
    return records


def make_examples(records: list[Record], recipe: Recipe, vocabulary: Vocabulary, views: int, device: str) -> Examples:
    generator = torch.Generator().manual_seed(len(records))
    return Examples(
        torch.randn(len(records), FEATURES, generator=generator).to(device),
        torch.randn(views, len(records), FEATURES, generator=generator).to(device),
        make_targets(records, vocabulary, recipe).to(torch.device(device)),
        AnswerScores(records, vocabulary.answers),
        torch.tensor([bool(record.answerable) for record in records]).to(device),
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="report")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bits", action="store_true", help="print a digest of the weights: the same each time on CPU")
    parser.add_argument("--state", type=Path, help="folder of the states after each epoch: go on from those in it")
    parser.add_argument("--kill", action="store_true", help="kill -9 such a fit three times, compare digests")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> str:
    """Fit, print what it took, and return the digest of the weights."""
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.recipe]
    busy = os.getloadavg()[0]
    rng = np.random.default_rng(0)
    records, val_records = make_records(TRAIN, 0, rng), make_records(VAL, TRAIN, rng)
    vocabulary = build_vocabulary(records, recipe.vocabulary, recipe.vocabulary_size)
    train = make_examples(records, recipe, vocabulary, recipe.views, arguments.device)
    val = make_examples(val_records, recipe, vocabulary, 1, arguments.device)
    folds = fold_rows(records, recipe.folds, recipe.seed) if recipe.folds > 1 else []
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        fitted = fit_predictor(
            recipe,
            train,
            val,
            (len(vocabulary.answers), len(TYPE_SETS[recipe.types])),
            folds,
            checkpoints=Checkpoints(arguments.state or Path(place), {}, resume=bool(arguments.state)),
            report=lambda row: print(
                f"  {time.perf_counter() - started:6.1f} s  {EPOCH} {row['epoch']}", file=sys.stderr, flush=True
            ),
        )
        on_val = scores(*predict(ClipEnsemble([fitted.predictor]), [val]), val)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    started = time.perf_counter()
    fit_baselines([(train.texts, train.images[0])], train.targets, len(vocabulary.answers))
    time_of_baselines = time.perf_counter() - started
    with_baselines = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        f"machine: {platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}"
    )
    print(f"load average when it began: {busy:.1f}")
    print(f"recipe {recipe.name}: {recipe.folds} head(s) x {recipe.epochs} epochs, {len(vocabulary.answers)} answers")
    print(f"{'time':>10}{'peak memory':>14}\n{seconds:>8.1f} s{peak:>11.2f} GB")
    print(f"{time_of_baselines:>8.1f} s{with_baselines:>11.2f} GB  both baselines after it")
    if arguments.device != "cpu":
        print(f"peak memory of the GPU: {torch.cuda.max_memory_allocated() / 1024**3:.2f} GB")
    digest = digest_of(*(tensor.cpu().numpy().tobytes() for tensor in fitted.predictor.state_dict().values()))[:16]
    if arguments.bits:
        print(f"weights: {digest}, VQA {on_val['vqa_accuracy_leave_one_out']:.4f}")
    return digest


def kill_and_resume(arguments: argparse.Namespace, whole: str) -> bool:
    """Kill a fit soon after every third epoch, and say whether the one that ends comes to the weights ``whole``."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--bits", "--state", place, "--threads", str(arguments.threads)]
        command += ["--recipe", arguments.recipe, "--device", arguments.device]
        for kill_after in (2, 5, 8):
            _kill_after_epoch(kill_after, command)
            print(f"killed after epoch {kill_after}")
        last = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    resumed = last.rpartition("weights: ")[2].partition(",")[0]
    print(f"resumed: weights {resumed}, {'the same' if resumed == whole else f'OTHERS than {whole}'}")
    return resumed == whole


def _kill_after_epoch(number: int, command: list[str]) -> None:
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rstrip().endswith(f"{EPOCH} {number}"):
                time.sleep(1)  # into the next epoch
                process.kill()


def main() -> int:
    arguments = parse_arguments()
    whole = run(arguments)
    return 0 if not arguments.kill or kill_and_resume(arguments, whole) else 1


if __name__ == "__main__":
    raise SystemExit(main())
