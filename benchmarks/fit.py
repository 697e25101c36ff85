"""Time and peak memory of a fit at VizWiz's full size, on random features.

    python -m benchmarks fit

20,523 training and 4,319 validation records, 768 features of each encoder (ViT-L/14@336px), 5,860 answers. Every epoch
is scored; encoding is left out.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from benchmarks.machine import peak_gb
from benchmarks.report import Section, Settings, Table
from training.artifacts import digest_of
from training.dataset import ANSWER_TYPES, Record, fold_rows
from training.folds import fit_predictor
from training.labels import TYPE_SETS, AnswerScores, Vocabulary, build_vocabulary, make_targets
from training.model import ClipEnsemble, predict
from training.recipe import RECIPES, Recipe
from training.trainer import FeatureDataset, official_scores

TRAIN, VAL, FEATURES, ANSWERS = 20_523, 4_319, 768, 5_860


def make_records(count: int, first: int, rng: np.random.Generator, answer_count: int = ANSWERS) -> list[Record]:
    """Records with a long tail of answers; those from number 0 on use every answer once."""
    rank = np.minimum(rng.pareto(0.4, (count, 3)), answer_count - 1).astype(int)
    records = []
    for number in range(count):
        a, b, c = (f"answer {n}" for n in rank[number])
        if first == 0 and number < answer_count:
            a = f"answer {number}"
        answers = (a, a, a, a, a, b, b, b, c, c)
        kind = ANSWER_TYPES[rank[number, 0] % len(ANSWER_TYPES)]
        records.append(Record(f"{first + number}.jpg", "?", answers, (None,) * 10, kind, kind != "unanswerable"))
    return records


def make_dataset(
    records: list[Record], recipe: Recipe, vocabulary: Vocabulary, rotations: int, device: str, features: int = FEATURES
) -> FeatureDataset:
    """Random features, and the targets of ``records``."""
    generator = torch.Generator().manual_seed(len(records))
    return FeatureDataset(
        torch.randn(len(records), features, generator=generator).to(device),
        torch.randn(rotations, len(records), features, generator=generator).to(device),
        make_targets(records, vocabulary, recipe).to(torch.device(device)),
        AnswerScores(records, vocabulary.answers),
        torch.tensor([bool(record.answerable) for record in records]).to(device),
    )


def run(settings: Settings) -> Section:
    """Fit the report's head."""
    recipe = replace(RECIPES["report"], epochs=1) if settings.quick else RECIPES["report"]
    rng = np.random.default_rng(0)
    records, val_records = make_records(TRAIN, 0, rng), make_records(VAL, TRAIN, rng)
    vocabulary = build_vocabulary(records, recipe.vocabulary)
    train = make_dataset(records, recipe, vocabulary, recipe.rotations, settings.device)
    val = make_dataset(val_records, recipe, vocabulary, 1, settings.device)
    folds = fold_rows(records, recipe.folds, recipe.seed) if recipe.folds > 1 else []
    started = time.perf_counter()
    fitted = fit_predictor(recipe, train, val, (len(vocabulary.answers), len(TYPE_SETS[recipe.types])), folds)
    predictions = predict(ClipEnsemble([fitted.predictor]), [val.features])
    official_scores(predictions.best, predictions.answerable, val)
    seconds = time.perf_counter() - started
    digest = digest_of(*(tensor.cpu().numpy().tobytes() for tensor in fitted.predictor.state_dict().values()))[:16]
    row = [recipe.name, str(recipe.epochs), f"{seconds:.1f} s", f"{peak_gb():.2f} GB", digest]
    header = ("recipe", "epochs", "time", "peak memory", "digest of the weights: the same on each run on this CPU")
    return [
        Table(
            header,
            [row],
            f"{TRAIN:,} + {VAL:,} records of {FEATURES} random features, {len(vocabulary.answers):,} answers.",
        )
    ]
