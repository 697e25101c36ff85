"""Every recipe on real VizWiz labels, with the questions alone: against logistic regression.

    python -m benchmarks.question_only --choose    # variants of `best` on a part of train: no look at val
    python -m benchmarks.question_only --choose --unseen    # on a part whose questions are asked nowhere else
    python -m benchmarks.question_only             # all recipes, fitted on train, scored on val, three seeds

There are no photos in it. A question's features are 768 of its hashed words and 768 of its hashed characters, in the
places of CLIP's text and image features; from there on it is the fit of `python -m training.fit`. The annotation files
are in $VIZWIZ_MATERIAL/Annotations or in --annotations.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from benchmarks.recipes import (
    CS,
    HEADER,
    VARIANTS,
    Outcome,
    Part,
    compare,
    describe,
    describe_machine,
    divide,
    fit_logistic,
    fit_recipe,
)
from training.dataset import Record, read_annotations
from training.metrics import question_accuracies
from training.recipe import RECIPES

FEATURES = 768  # as many as ViT-L/14@336px has
HASHES = 1 << 14
_COURTESIES = re.compile(r"\b(thank( you)?( very much)?|thanks|please|hello|okay)\b")
Array = npt.NDArray[Any]


def encode(train: Sequence[Record], test: Sequence[Record]) -> tuple[Part, Part]:
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
    return Part(train, words, characters[None]), Part(test, test_words, test_characters[None])


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


def constant(test: Sequence[Record]) -> float:
    """The VQA accuracy of always answering "unanswerable", in percent."""
    given = [record.answers for record in test]
    return 100 * float(question_accuracies(["unanswerable"] * len(test), given).leave_one_out.mean())


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    material = os.environ.get("VIZWIZ_MATERIAL")
    parser.add_argument(
        "--annotations",
        type=Path,
        default=Path(material, "Annotations") if material else None,
        help="folder of the annotation files (default: $VIZWIZ_MATERIAL/Annotations)",
    )
    parser.add_argument("--choose", action="store_true", help="fit on 85%% of train, score on the rest of it")
    parser.add_argument("--unseen", action="store_true", help="with --choose: the two parts share no question")
    parser.add_argument("--only", nargs="+", help="recipes or variants to fit")
    parser.add_argument("--c", type=float, default=0.01, help="of logistic regression; --choose found the default")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.annotations is None:
        parser.error("name the folder of VizWiz's annotation files with --annotations, or set VIZWIZ_MATERIAL")
    if not arguments.annotations.is_dir():
        parser.error(f"{arguments.annotations} is not a folder: give that of VizWiz's annotation files")
    if arguments.unseen and not arguments.choose:
        parser.error("--unseen goes with --choose")
    return arguments


def main() -> int:
    """Print the tables."""
    arguments = parse_arguments()
    records = [read_split_of(arguments.annotations, split) for split in ("train", "val")]
    if arguments.choose:
        groups = [plain(record.question) for record in records[0]] if arguments.unseen else range(len(records[0]))
        records = list(divide(records[0], groups))
    train, test = encode(*records)
    answerable = test.answerable
    print(describe_machine())
    scored_on = "train" if arguments.choose else "val"
    print(f"fitted on {len(train.records):,} questions of train, scored on {len(test.records):,} of {scored_on}")
    print(HEADER)
    share = answerable.mean()
    print(f"{'always unanswerable / chance':<38}{constant(test.records):>7.2f}{share:>9.3f}{1 - share:>9.3f}")
    found: dict[str, list[Outcome]] = {}

    def add(name: str, fit: Callable[[int], Outcome], seeds: int) -> None:
        started = time.perf_counter()
        found[name] = [fit(seed) for seed in range(seeds)]
        print(describe(name, found[name], answerable, (time.perf_counter() - started) / seeds), flush=True)

    for c in CS if arguments.choose else (arguments.c,):
        add(f"logistic regression, C = {c:g}", lambda _, c=c: fit_logistic(c, train, test), 1)  # type: ignore[misc]
    rows = VARIANTS if arguments.choose else {name: RECIPES[name] for name in ("best", "report", "paper")}
    for name, recipe in rows.items():
        if not arguments.only or any(part in name for part in arguments.only):
            add(
                name,
                lambda seed, recipe=recipe: fit_recipe(replace(recipe, seed=seed), train, test),  # type: ignore[misc]
                arguments.seeds,
            )
    if "best" in found:
        for name, outcomes in found.items():
            if name != "best":
                print(compare(f"best - {name.strip()}", found["best"], outcomes, answerable), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
