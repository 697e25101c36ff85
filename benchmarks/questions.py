"""Every recipe on real VizWiz labels, with the questions alone: against logistic regression.

    python -m benchmarks questions              # all recipes, fitted on train, scored on val, three seeds
    python -m benchmarks questions --choose     # variants of `best` on a part of train: no look at val

There are no photos in it. A question's features are 768 of its hashed words and 768 of its hashed characters, in the
places of CLIP's text and image features; from there on it is the fit of `python -m training.fit`. The annotation files
are in $VIZWIZ_MATERIAL/Annotations.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from benchmarks.recipes import HEADER, Part, asked, inside, score
from benchmarks.report import Section, Settings, Table
from training.dataset import Record, read_annotations
from training.metrics import question_accuracies

C = 0.01  # of logistic regression: the best of CS on a part of train
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


def run(settings: Settings) -> Section:
    """Score the recipes on val, or variants of `best` on a part of train."""
    material = os.environ.get("VIZWIZ_MATERIAL")
    if not material:
        raise SystemExit("set VIZWIZ_MATERIAL to a folder of VizWiz's annotation files (docs/data.md)")
    limit = 1_000 if settings.quick else None
    train, test = (read_split_of(Path(material, "Annotations"), split)[:limit] for split in ("train", "val"))
    if settings.choose:
        chosen = inside(len(train))
        train, test = ([train[row] for row in np.flatnonzero(rows)] for rows in (chosen, ~chosen))
    fitted, scored = encode(train, test)
    recipes, seeds = asked(settings)
    rows = score(fitted, scored, recipes, seeds, C)
    share = scored.answerable.mean()
    always = ['always "unanswerable", or chance', f"{constant(test):.2f}", "", f"{share:.3f}", "", f"{1 - share:.3f}"]
    text = f"Scored on {len(test):,} questions; seeds of each recipe: {seeds}."
    return [Table(HEADER, [*rows, ["", *always, "", ""]], text)]
