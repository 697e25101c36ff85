"""The baselines: against scikit-learn's, and what each of them reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from tests.training.synthetic import make_dataset, make_records
from training.baselines import (
    LOGISTIC,
    QUESTION_ONLY,
    C,
    fit_baseline,
    fit_baselines,
    load_baselines,
    normalised,
    save_baselines,
    underfits,
)
from training.labels import IGNORED_TARGET
from training.recipe import Recipe
from training.trainer import FeatureDataset


def features_of(examples: FeatureDataset) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(examples.texts, examples.images[0])]


def test_logistic_regression_is_scikit_learns() -> None:
    examples, answers = make_dataset(make_records(700), Recipe(), embed_dim=64)
    x = normalised(features_of(examples), LOGISTIC)
    targets = examples.targets
    baseline = fit_baseline(x, targets, answers)
    ours = torch.nn.functional.linear(x, baseline.weight, baseline.bias)
    known = targets.answer != IGNORED_TARGET
    theirs = LogisticRegression(C=C, max_iter=1_000).fit(x[known].numpy(), targets.answer[known].numpy())
    expected = torch.zeros(len(x), answers)
    expected[:, theirs.classes_] = torch.from_numpy(theirs.predict_proba(x.numpy())).float()
    assert (ours[:, :-1].softmax(1) - expected).abs().mean() < 0.01
    can = LogisticRegression(C=C, max_iter=1_000).fit(x.numpy(), examples.answerable.numpy())
    found = can.predict_proba(x.numpy())[:, 1].astype(np.float32)
    assert (ours[:, -1].sigmoid() - torch.from_numpy(found)).abs().mean() < 0.02
    agree = baseline.predict(x).best == torch.from_numpy(theirs.predict(x.numpy()))
    assert agree.float().mean() > 0.97


def test_records_without_a_target_answer_teach_answerability_alone() -> None:
    examples, answers = make_dataset(make_records(300), Recipe())
    none = examples.targets._replace(answer=torch.full_like(examples.targets.answer, IGNORED_TARGET))
    baseline = fit_baseline(normalised(features_of(examples), LOGISTIC), none, answers)
    assert not baseline.weight[:-1].any()
    assert baseline.weight[-1].any()


def test_the_question_alone_is_read_without_the_photo(tmp_path: Path) -> None:
    examples, answers = make_dataset(make_records(100), Recipe())
    [(texts, images)] = features_of(examples)
    fitted = fit_baselines([(texts, images)], examples.targets, answers)
    others = [(texts, torch.randn_like(images))]
    assert torch.equal(normalised(others, QUESTION_ONLY), normalised([(texts, images)], QUESTION_ONLY))
    assert fitted[QUESTION_ONLY].weight.shape == (answers + 1, 8)
    assert fitted[LOGISTIC].weight.shape == (answers + 1, 16)
    save_baselines(fitted, tmp_path / "baselines.safetensors")
    for name, baseline in load_baselines(tmp_path / "baselines.safetensors").items():
        assert all(map(torch.equal, baseline, fitted[name]))


def test_a_head_underfits_where_it_loses_more_than_chance_explains() -> None:
    right = torch.ones(100)
    assert underfits(torch.cat([torch.zeros(10), torch.ones(90)]), right)
    assert not underfits(torch.cat([torch.zeros(2), torch.ones(98)]), right)
    assert not underfits(right, torch.zeros(100))
    assert not underfits(right[:1], right[:1])
