"""Synthetic records and features to fit on."""

from __future__ import annotations

import torch

from training.dataset import Record
from training.labels import AnswerScores, build_vocabulary, make_targets
from training.recipe import Recipe
from training.trainer import FeatureDataset

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


def make_dataset(
    records: list[Record], recipe: Recipe, embed_dim: int = 8, rotations: int = 1
) -> tuple[FeatureDataset, int]:
    """Noisy features of the majority answer; returns the number of answers too."""
    vocabulary = build_vocabulary(make_records(50), recipe.vocabulary)
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(len(NAMES), embed_dim, generator=generator)
    numbers = [NAMES.index(record.answers[0]) for record in records]
    noise = torch.randn(rotations + 1, len(records), embed_dim, generator=generator)
    dataset = FeatureDataset(
        centers[numbers] + noise[0],
        centers[numbers] + noise[1:],
        make_targets(records, vocabulary, recipe),
        AnswerScores(records, vocabulary.answers),
        torch.tensor([bool(record.answerable) for record in records]),
    )
    return dataset, len(vocabulary.answers)
