"""Time and peak memory of a fit at VizWiz's full size, on random features.

    python benchmarks/fit_speed.py                     # the report's recipe: 10 epochs, half a minute on two cores
    python benchmarks/fit_speed.py --recipe best --device cuda
    python benchmarks/fit_speed.py --bits              # print a digest of the weights: the same each time on CPU

20,523 training and 4,319 validation records, 768 features of each encoder (ViT-L/14@336px), 5,860 answers. Every epoch
is scored; encoding is left out.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from export.targets import cpu_name
from training.artifacts import digest_of
from training.dataset import ANSWER_TYPES, Record, fold_rows
from training.folds import fit_predictor
from training.labels import TYPE_SETS, AnswerScores, Vocabulary, build_vocabulary, make_targets
from training.model import ClipEnsemble, predict
from training.recipe import RECIPES, Recipe
from training.trainer import FeatureDataset, official_scores

TRAIN, VAL, FEATURES, ANSWERS = 20_523, 4_319, 768, 5_860


def make_records(count: int, first: int, rng: np.random.Generator) -> list[Record]:
    """Records with a long tail of answers; those from number 0 on use every answer once."""
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


def make_dataset(
    records: list[Record], recipe: Recipe, vocabulary: Vocabulary, rotations: int, device: str
) -> FeatureDataset:
    """Random features, and the targets of ``records``."""
    generator = torch.Generator().manual_seed(len(records))
    return FeatureDataset(
        torch.randn(len(records), FEATURES, generator=generator).to(device),
        torch.randn(rotations, len(records), FEATURES, generator=generator).to(device),
        make_targets(records, vocabulary, recipe).to(torch.device(device)),
        AnswerScores(records, vocabulary.answers),
        torch.tensor([bool(record.answerable) for record in records]).to(device),
    )


def main() -> None:
    """Fit, and print time, memory and the digest of the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="report")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bits", action="store_true", help="print a digest of the weights: the same each time on CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.recipe]
    busy = os.getloadavg()[0]
    rng = np.random.default_rng(0)
    records, val_records = make_records(TRAIN, 0, rng), make_records(VAL, TRAIN, rng)
    vocabulary = build_vocabulary(records, recipe.vocabulary)
    train = make_dataset(records, recipe, vocabulary, recipe.rotations, arguments.device)
    val = make_dataset(val_records, recipe, vocabulary, 1, arguments.device)
    folds = fold_rows(records, recipe.folds, recipe.seed) if recipe.folds > 1 else []
    started = time.perf_counter()
    fitted = fit_predictor(
        recipe,
        train,
        val,
        (len(vocabulary.answers), len(TYPE_SETS[recipe.types])),
        folds,
        on_epoch=lambda row: print(
            f"  {time.perf_counter() - started:6.1f} s  epoch {row['epoch']}", file=sys.stderr, flush=True
        ),
    )
    predictions = predict(ClipEnsemble([fitted.predictor]), [val.features])
    on_val = official_scores(predictions.best, predictions.answerable, val)
    seconds = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{cpu_name()}, {arguments.threads} threads, torch {torch.__version__}; load average {busy:.1f} at the start")
    print(f"recipe {recipe.name}: {recipe.folds} head(s) x {recipe.epochs} epochs, {len(vocabulary.answers)} answers")
    print(f"{seconds:.1f} s, peak memory {peak_gb:.2f} GB")
    if arguments.device != "cpu":
        print(f"peak memory of the GPU: {torch.cuda.max_memory_allocated() / 1024**3:.2f} GB")
    if arguments.bits:
        digest = digest_of(*(tensor.cpu().numpy().tobytes() for tensor in fitted.predictor.state_dict().values()))[:16]
        print(f"weights: {digest}, VQA {on_val['vqa_accuracy_leave_one_out']:.4f}")


if __name__ == "__main__":
    main()
