"""Training data of a fit: records, answer list, CLIPs, and the feature datasets made from them."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from training.artifacts import digest_of
from training.backbone import OPEN_CLIP, FrozenClip
from training.dataset import DatasetError, Rows, Split, select
from training.feature_cache import photo_digests
from training.features import encode_split
from training.labels import (
    TYPE_SETS,
    AnswerScores,
    Vocabulary,
    all_confidences_unknown,
    build_vocabulary,
    make_targets,
)
from training.quality import ISSUES, quality_folds
from training.recipe import REPORT_RULE, Recipe
from training.scoring import majority_baseline
from training.trainer import FeatureDataset
from vizwiz_client.contract.tensors import CONTRACT_VERSION


class TrainingData(NamedTuple):
    """Records, CLIPs and answer list of a fit."""

    train: Split  # the whole split, to share its cached features between fits with and without --holdout
    rows: Rows  # of train, to fit on
    val: Split
    clips: list[FrozenClip]
    vocabulary: Vocabulary


def choose_vocabulary(recipe: Recipe, train: Split) -> Vocabulary:
    """Answer list of ``train`` by the recipe's rule.

    Raises:
        DatasetError: it would be empty.
    """
    vocabulary = build_vocabulary(train.records, recipe.vocabulary)
    if not vocabulary.answers:
        reason = "with confidence 'yes'" if recipe.vocabulary == REPORT_RULE else "at all"
        raise DatasetError(f"{train.folder}: no record of train has an answer {reason}")
    unknown = sum(all_confidences_unknown(record) for record in train.records)
    if unknown and recipe.vocabulary == REPORT_RULE:
        print(f"{unknown} training records have no known confidence: all ten of their answers count")
    return vocabulary


def run_config(data: TrainingData, recipe: Recipe, cache: Path) -> dict[str, Any]:
    """The content of run.json, except the time of the fit and the digests of its files.

    Photos are identified by their content: those whose digest ``cache`` does not know are read.
    """
    train, rows, val, clips, vocabulary = data
    described = [
        {
            "source": clip.source,
            "sha256": clip.digest,
            "image_size": clip.image_size,
            "squash": clip.squash,
            "embed_dim": clip.embed_dim,
        }
        for clip in clips
    ]
    packages = ["vizwiz-client", "torch", "clip-anytorch", "numpy", "pillow"]
    packages += ["open-clip-torch"] if any(clip.source.startswith(OPEN_CLIP) for clip in clips) else []
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
            "is_demo": train.is_demo,
            **{split.name: _describe_split(split, cache) for split in (train, val)},
        },
        "quality": _describe_quality(select(train, rows), recipe),
        "clips": described,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        "device": str(clips[0].device),
    }


def _describe_split(split: Split, cache: Path) -> dict[str, Any]:
    photos = split.photo_paths()
    digests, _ = photo_digests(photos, cache)  # unreadable photos are reported when they are encoded
    return {
        "records": len(split.records),
        "sha256": split.digest,
        "photos_sha256": digest_of(*(digests.get(photo, "") for photo in photos)),
        "votes_sha256": split.votes_digest,
    }


def _describe_quality(train: Split, recipe: Recipe) -> dict[str, Any] | None:
    folds = quality_folds(train.records, recipe)
    return {"issues": list(ISSUES), "heads": len(folds)} if folds else None


def make_dataset(
    split: Split,
    rows: Rows,
    clip: FrozenClip,
    vocabulary: Vocabulary,
    recipe: Recipe,
    cache: Path,
    *,
    rotations: int = 1,
) -> FeatureDataset:
    """Encode ``split`` and put the features and targets of ``rows`` on the CLIP's device."""
    features = encode_split(clip, split, cache, rotations=rotations)
    records = select(split, rows).records
    images = np.stack([rotated[rows] for rotated in (features.images, *features.rotated)])
    return FeatureDataset(
        torch.from_numpy(features.texts[rows]).to(clip.device),
        torch.from_numpy(images).to(clip.device),
        make_targets(records, vocabulary, recipe).to(clip.device),
        AnswerScores(records, vocabulary.answers),
        torch.tensor([bool(record.answerable) for record in records]).to(clip.device),
    )


def score_majority_baseline(data: TrainingData) -> dict[str, Any]:
    """Score the most frequent target of the training records, given to every question of val."""
    targets = Counter(data.vocabulary.target(data.train.records[row]) for row in data.rows)
    del targets[None]
    return majority_baseline(str(targets.most_common(1)[0][0]), data.val.records)
