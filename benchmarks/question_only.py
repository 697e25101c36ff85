"""Every recipe on real VizWiz labels, with the questions alone: what the fit makes of them, against a ridge regression.

    python benchmarks/question_only.py --choose    # compare variants of `best` on a part of train: no look at val
    python benchmarks/question_only.py --choose --unseen    # on a part whose questions are asked nowhere else
    python benchmarks/question_only.py             # all recipes and the ablation of `best`, fitted on train, on val

There are no photos in it. A question's features are 768 of its hashed words and 768 of its hashed characters, in the
places of CLIP's text and image features; from there on it is the fit of `python -m training.fit`. The ablation changes
one setting of `best` at a time, for one head. Three quarters of an hour on two cores; --only names single rows.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.metrics import average_precision_score

from training.answer_types import TYPE_SETS
from training.data import Record, read_annotations
from training.fitting import Examples
from training.folds import answerability_of, fit_predictor
from training.metrics import question_accuracies
from training.predictor import ClipEnsemble
from training.recipe import RECIPES, Recipe
from training.reliability import expected_calibration_error, reliability
from training.splits import fold_rows
from training.targets import AnswerScores, make_targets
from training.vocabulary import build_vocabulary

FEATURES = 768  # as many as ViT-L/14@336px has
HASHES = 1 << 14
RIDGE_PENALTIES = (0.3, 1.0, 3.0, 10.0)
BOOTSTRAPS = 10_000
_COURTESIES = re.compile(r"\b(thank( you)?( very much)?|thanks|please|hello|okay)\b")
Array = npt.NDArray[Any]

BEST = RECIPES["best"]
ONE_HEAD = replace(BEST, folds=1, calibration="none")
ABLATION = {
    "best, not calibrated": replace(BEST, calibration="none"),
    "best, all from what answers are": replace(BEST, answerable_from="joined"),
    "best, one head": ONE_HEAD,
    "  majority targets": replace(ONE_HEAD, targets="majority"),
    "  annotators' shares as targets": replace(ONE_HEAD, targets="annotators"),
    "  binary cross-entropy": replace(ONE_HEAD, answer_loss="bce"),
    "  label smoothing 0.1": replace(ONE_HEAD, label_smoothing=0.1),
    "  answerability from what answers are": replace(ONE_HEAD, answerable_from="joined"),
    "  hard answerability": replace(ONE_HEAD, answerable_targets="label"),
    "  balanced answerability": replace(ONE_HEAD, answerable_weighting="balanced"),
    "  no weight averaging": replace(ONE_HEAD, ema=0.0),
    "  constant learning rate": replace(ONE_HEAD, schedule="constant"),
    "  the epoch best on val": replace(ONE_HEAD, keep="best"),
    "  paper's 7 types": replace(ONE_HEAD, types="paper"),
    "  dropout 0.3": replace(ONE_HEAD, dropout=0.3),
    "  10 epochs": replace(ONE_HEAD, epochs=10),
}


class Outcome(NamedTuple):
    """What a model said about N questions, and how good that was."""

    accuracy: Array  # [N], leave-one-out, in [0, 1]
    answerable: Array  # [N], confidence that the photo can answer


class Features(NamedTuple):
    """Features of the questions of two sets of records."""

    train: tuple[Array, Array]  # words and characters, fp32 [N, 768] each
    test: tuple[Array, Array]


def encode(train: Sequence[Record], test: Sequence[Record]) -> Features:
    """Hash n-grams, dampen their counts, and keep the 768 strongest directions; learnt from ``train`` alone."""
    questions = [[plain(record.question) for record in records] for records in (train, test)]
    columns = []
    for settings in (
        {"analyzer": "word", "ngram_range": (1, 3), "token_pattern": r"\S+"},
        {"analyzer": "char_wb", "ngram_range": (2, 5)},
    ):
        hashing = HashingVectorizer(n_features=HASHES, alternate_sign=False, norm=None, **settings)
        counts = [hashing.transform(part) for part in questions]
        damping = TfidfTransformer(sublinear_tf=True, use_idf=False).fit(counts[0])
        damped = [damping.transform(part) for part in counts]
        directions = TruncatedSVD(FEATURES, random_state=0, n_iter=3).fit(damped[0])
        columns.append([directions.transform(part).astype(np.float32) for part in damped])
    (words, test_words), (characters, test_characters) = columns
    return Features((words, characters), (test_words, test_characters))


def read_split_of(folder: Path, split: str) -> Sequence[Record]:
    """The records of ``split``: rebuilt ones (docs/data.md) where there are any: the figures are theirs."""
    rebuilt = folder / f"{split}_reconstructed.json"
    return read_annotations(rebuilt if rebuilt.exists() else folder / f"{split}.json")


def plain(question: str) -> str:
    """What all sources of the rebuilt train kept: lower case, without punctuation, apostrophes and courtesies.

    A third of its questions came so, and most of these are unanswerable: a "please" or "what's" that is left in would
    tell the others by their source, which is nothing that a question says of its photo.
    """
    words = "".join(mark if mark.isalnum() else " " for mark in re.sub("['’`]", "", question.lower())).split()
    return " ".join(_COURTESIES.sub(" ", " ".join(words)).split())


def divide(records: Sequence[Record], unseen: bool) -> tuple[Sequence[Record], Sequence[Record]]:
    """85% of ``records``, at random, and the rest; where ``unseen``, of the distinct questions."""
    groups = [plain(record.question) if unseen else number for number, record in enumerate(records)]
    distinct = list(dict.fromkeys(groups))
    order = np.random.default_rng(0).permutation(len(distinct))
    fitted = {distinct[number] for number in order[: round(0.85 * len(distinct))]}
    parts: tuple[list[Record], list[Record]] = [], []
    for record, group in zip(records, groups, strict=True):
        parts[group not in fitted].append(record)
    return parts


def fit_recipe(recipe: Recipe, train: Sequence[Record], test: Sequence[Record], features: Features) -> Outcome:
    """Fit ``recipe`` on ``train`` and predict ``test``."""
    vocabulary = build_vocabulary(train, recipe.vocabulary, recipe.vocabulary_size)
    recipe = replace(recipe, views=1)  # there is nothing to turn
    on_train, on_test = (
        Examples(
            torch.from_numpy(words),
            torch.from_numpy(characters)[None],
            make_targets(records, vocabulary, recipe),
            AnswerScores(records, vocabulary.answers),
            torch.tensor([bool(record.answerable) for record in records]),
        )
        for records, (words, characters) in ((train, features.train), (test, features.test))
    )
    folds = fold_rows(train, recipe.folds, recipe.seed) if recipe.folds > 1 else []
    sizes = (len(vocabulary.answers), len(TYPE_SETS[recipe.types]))
    predictor = ClipEnsemble([fit_predictor(recipe, on_train, on_test, sizes, folds).predictor]).eval()
    with torch.inference_mode():
        best = torch.cat([predictor([(part.texts, part.images)]).answer.argmax(1) for part in on_test.batches()])
    return Outcome(on_test.scores.accuracies(best)[0].numpy(), answerability_of(predictor, [on_test]))


def fit_ridge(penalty: float, train: Sequence[Record], test: Sequence[Record], features: Features) -> Outcome:
    """Least squares with an L2 penalty, from the same features to every answer's accuracy and to answerability."""
    vocabulary = build_vocabulary(train)
    recipe = Recipe(targets="accuracy", answerable_targets="annotators")
    targets = make_targets(train, vocabulary, recipe)
    wanted = np.zeros((len(train), len(vocabulary.answers) + 1))
    np.add.at(wanted, (np.arange(len(train))[:, None], targets.answers.numpy()), targets.weights.numpy())
    wanted[:, -1] = targets.answerable.numpy()
    x, y = (np.hstack([*part, np.ones((len(part[0]), 1))]).astype(np.float64) for part in features)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ wanted)
    predicted = y @ weights
    scores = AnswerScores(test, vocabulary.answers)
    accuracy = scores.accuracies(torch.from_numpy(predicted[:, :-1].argmax(axis=1)))[0].numpy()
    return Outcome(accuracy, predicted[:, -1].clip(0, 1))


def constant(test: Sequence[Record]) -> Outcome:
    """Always "unanswerable"."""
    accuracy = question_accuracies(["unanswerable"] * len(test), [record.answers for record in test]).leave_one_out
    return Outcome(accuracy, np.full(len(test), 0.5))


def describe(name: str, outcome: Outcome, answerable: Array, seconds: float) -> str:
    """One row of the table."""
    return (
        f"{name:<38}{100 * outcome.accuracy.mean():>7.2f}"
        f"{average_precision_score(answerable, outcome.answerable):>9.3f}"
        f"{average_precision_score(~answerable, 1 - outcome.answerable):>9.3f}"
        f"{expected_calibration_error(reliability(outcome.answerable, answerable)):>8.3f}{seconds:>8.0f} s"
    )


def compare(name: str, ours: Outcome, theirs: Outcome, answerable: Array) -> str:
    """The difference and its 95% interval, by a paired bootstrap over the questions."""
    rng = np.random.default_rng(0)
    measures: dict[str, Callable[[Any], float]] = {
        "VQA": lambda rows: 100 * (ours.accuracy[rows].mean() - theirs.accuracy[rows].mean()),
        "AP answerable": lambda rows: difference(answerable[rows], ours.answerable[rows], theirs.answerable[rows]),
        "AP unanswerable": lambda rows: difference(~answerable[rows], -ours.answerable[rows], -theirs.answerable[rows]),
    }
    lines = [f"{name}, {BOOTSTRAPS:,} (VQA) and {BOOTSTRAPS // 10:,} (AP) resamples of the questions"]
    for measure, of in measures.items():
        count = BOOTSTRAPS if measure == "VQA" else BOOTSTRAPS // 10
        drawn = [of(rng.integers(0, len(answerable), len(answerable))) for _ in range(count)]
        low, high = np.percentile(drawn, [2.5, 97.5])
        lines.append(f"  {measure:<16}{of(slice(None)):>+8.3f}   95% interval {low:+.3f} to {high:+.3f}")
    return "\n".join(lines)


def difference(positive: Array, ours: Array, theirs: Array) -> float:
    """How much higher our average precision is."""
    return float(average_precision_score(positive, ours) - average_precision_score(positive, theirs))


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parents[2] / "shared" / "data" / "vizwiz" / "Annotations"
    parser.add_argument("--annotations", type=Path, default=default, help="folder of the annotation files")
    parser.add_argument("--choose", action="store_true", help="fit on 85%% of train, score on the rest of it")
    parser.add_argument("--unseen", action="store_true", help="with --choose: the two parts share no question")
    parser.add_argument("--only", nargs="+", help="rows to fit: names of recipes, or parts of an ablation's name")
    parser.add_argument("--penalty", type=float, default=3.0, help="of the ridge that is compared, found with --choose")
    parser.add_argument("--seeds", type=int, default=1, help="fits of `best` to compare with the ridge")
    arguments = parser.parse_args()
    if arguments.unseen and not arguments.choose:
        parser.error("--unseen goes with --choose")
    train, test = (read_split_of(arguments.annotations, split) for split in ("train", "val"))
    if arguments.choose:
        train, test = divide(train, arguments.unseen)
    answerable = np.array([bool(record.answerable) for record in test])
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, load average {load:.1f}"
    )
    scored_on = "train" if arguments.choose else "val"
    print(f"fitted on {len(train):,} questions of train, scored on {len(test):,} of {scored_on}")
    features = encode(train, test)
    print(f"{'':<38}{'VQA':>7}{'AP ans.':>9}{'AP un.':>9}{'ECE':>8}{'time':>10}")
    share = answerable.mean()
    always = 100 * constant(test).accuracy.mean()
    print(f"{'always unanswerable / chance':<38}{always:>7.2f}{share:>9.3f}{1 - share:>9.3f}")
    ridges = {}
    for penalty in sorted({arguments.penalty, *(RIDGE_PENALTIES if arguments.choose else ())}):
        started = time.perf_counter()
        ridges[penalty] = ridge = fit_ridge(penalty, train, test, features)
        print(describe(f"ridge, penalty {penalty:g}", ridge, answerable, time.perf_counter() - started), flush=True)
    wanted = arguments.only or [*RECIPES, *ABLATION]
    rows = {name: recipe for name, recipe in (RECIPES | ABLATION).items() if wants(name, wanted)}
    rows |= {f"best, seed {seed}": replace(BEST, seed=seed) for seed in range(1, arguments.seeds)}
    outcomes = {}
    for name, recipe in rows.items():
        started = time.perf_counter()
        outcomes[name] = fit_recipe(recipe, train, test, features)
        print(describe(name, outcomes[name], answerable, time.perf_counter() - started), flush=True)
    for name in [name for name in outcomes if name in RECIPES]:
        against = f"{name} against the ridge, penalty {arguments.penalty:g}"
        print(compare(against, outcomes[name], ridges[arguments.penalty], answerable), flush=True)
    return 0


def wants(name: str, wanted: Sequence[str]) -> bool:
    """Whether a row was asked for: a recipe by its name, a row of the ablation by a part of its."""
    return name in wanted if name in RECIPES else any(part in name and part not in RECIPES for part in wanted)


if __name__ == "__main__":
    raise SystemExit(main())
