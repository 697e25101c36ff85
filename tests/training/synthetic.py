"""Records and features that a head can learn from, made without photos or CLIP."""

from __future__ import annotations

import torch

from training.dataset import Record
from training.fitting import Examples
from training.recipe import Recipe
from training.targets import AnswerScores, make_targets
from training.vocabulary import build_vocabulary

NAMES = ("mug", "cup", "blue", "yes", "unanswerable")


def make_records(count: int, seed: int = 0) -> list[Record]:
    """Records of five answers, six annotators agreeing."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(len(NAMES), (count,), generator=generator).tolist()
    return [
        Record(
            f"{seed}-{row}.jpg",
            "?",
            (NAMES[number],) * 6 + (NAMES[(number + 1) % 5],) * 3 + ("rare",),
            ("yes",) * 10,
            "unanswerable" if NAMES[number] == "unanswerable" else "other",
            NAMES[number] != "unanswerable",
        )
        for row, number in enumerate(numbers)
    ]


def make_examples(records: list[Record], recipe: Recipe, width: int = 8, views: int = 1) -> tuple[Examples, int]:
    """Features that tell the majority answer, with noise; returns the number of answers too."""
    vocabulary = build_vocabulary(make_records(50), recipe.vocabulary, recipe.vocabulary_size)
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(len(NAMES), width, generator=generator)
    numbers = [NAMES.index(record.answers[0]) for record in records]
    noise = torch.randn(views + 1, len(records), width, generator=generator)
    examples = Examples(
        centers[numbers] + noise[0],
        centers[numbers] + noise[1:],
        make_targets(records, vocabulary, recipe),
        AnswerScores(records, vocabulary.answers),
        torch.tensor([bool(record.answerable) for record in records]),
    )
    return examples, len(vocabulary.answers)
