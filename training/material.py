"""What a fit is made from: the records it is fitted on, their answer list, and their features and targets."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from training.answer_types import TYPE_SETS
from training.artifacts import digest_of
from training.backbone import FrozenClip
from training.dataset import DatasetError, Split
from training.feature_cache import photo_digests
from training.features import encode_split
from training.fitting import Examples
from training.recipe import Recipe
from training.scoring import majority_baseline
from training.splits import Rows, take
from training.targets import AnswerScores, make_targets
from training.vocabulary import REPORT, Vocabulary, all_confidences_unknown, build_vocabulary
from vizwiz_client.contract.tensors import CONTRACT_VERSION


class Material(NamedTuple):
    """What a fit is made from."""

    train: Split  # whole, so that its features are found in the cache whatever is held out of it
    rows: Rows  # of train, those that are fitted on
    val: Split
    clips: list[FrozenClip]
    vocabulary: Vocabulary


def choose_vocabulary(recipe: Recipe, train: Split) -> Vocabulary:
    """The answer list of ``train`` by the recipe's rule.

    Raises:
        DatasetError: it would be empty.
    """
    vocabulary = build_vocabulary(train.records, recipe.vocabulary, recipe.vocabulary_size)
    if not vocabulary.answers:
        reason = "given with confidence 'yes'" if recipe.vocabulary == REPORT else "at all"
        raise DatasetError(f"{train.folder}: no record of train has an answer {reason}")
    unknown = sum(all_confidences_unknown(record) for record in train.records)
    if unknown and recipe.vocabulary == REPORT:
        print(f"{unknown} training records have no known confidence: all ten of their answers count")
    return vocabulary


def describe_material(material: Material, recipe: Recipe, cache: Path) -> dict[str, Any]:
    """The run's configuration, but for the time.

    Photos are read for their digests where ``cache`` does not know those: a fit belongs to their content, not only to
    their names.
    """
    train, _, val, clips, vocabulary = material
    described = [
        {"source": c.source, "sha256": c.digest, "image_size": c.image_size, "embed_dim": c.embed_dim} for c in clips
    ]
    return {
        "contract_version": CONTRACT_VERSION,
        "recipe": vars(recipe),
        "type_set": recipe.types,
        "answer_types": TYPE_SETS[recipe.types],
        "vocabulary": {
            "rule": recipe.vocabulary,
            "size": len(vocabulary.answers),
            "oracle_accuracy": vocabulary.oracle_accuracy(val.records),
        },
        "data": {
            "folder": str(train.folder),
            "is_vizwiz": train.is_vizwiz and val.is_vizwiz,
            **{split.name: _describe_split(split, cache) for split in (train, val)},
        },
        "clips": described,
        **({"clip": described[0]} if len(clips) == 1 else {}),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("vizwiz-client", "torch", "clip-anytorch", "numpy", "pillow")},
        "device": str(clips[0].device),
    }


def _describe_split(split: Split, cache: Path) -> dict[str, Any]:
    photos = split.photo_paths()
    digests, _ = photo_digests(photos, cache)  # those that cannot be read are told, all of them, when they are encoded
    return {
        "records": len(split.records),
        "sha256": split.digest,
        "photos_sha256": digest_of(*(digests.get(photo, "") for photo in photos)),
    }


def make_examples(
    split: Split,
    rows: Rows,
    clip: FrozenClip,
    vocabulary: Vocabulary,
    recipe: Recipe,
    cache: Path,
    *,
    rotations: int = 1,
) -> Examples:
    """Encode ``split``, and put the features and targets of ``rows`` on the CLIP's device."""
    features = encode_split(clip, split, cache, rotations=rotations)
    part = take(split, rows)
    images = np.stack([rotated[rows] for rotated in (features.images, *features.rotated)])
    return Examples(
        torch.from_numpy(features.texts[rows]).to(clip.device),
        torch.from_numpy(images).to(clip.device),
        make_targets(part.records, vocabulary, recipe).to(clip.device),
        AnswerScores(part.records, vocabulary.answers),
        torch.tensor([bool(record.answerable) for record in part.records]).to(clip.device),
    )


def score_majority_baseline(material: Material) -> dict[str, Any]:
    """Score the training records' most frequent target on val, given to every question."""
    targets = Counter(material.vocabulary.target(material.train.records[row]) for row in material.rows)
    del targets[None]
    return majority_baseline(str(targets.most_common(1)[0][0]), material.val.records)
