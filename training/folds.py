"""Fit one head, or one per fold, for one CLIP or several, and calibrate the heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from training.baselines import Predicted
from training.calibration import Line, calibrate, find_calibration
from training.checkpoints import Checkpoints
from training.fitting import HEADLINE, Examples, Fitted, Row, fit_head
from training.predictor import ClipEnsemble, Predictor
from training.recipe import Recipe
from training.splits import Rows

_TRIAL_RECORDS = 1_000  # an accuracy over fewer is too noisy to choose by

Report = Callable[[Row], None]


class FittedPredictor(NamedTuple):
    """What was fitted on one CLIP."""

    predictor: Predictor
    fits: list[Fitted]  # one per head
    calibration: Line  # of the log-odds of answerability; part of each head's weights already


def fit_predictor(
    recipe: Recipe,
    train: Examples,
    val: Examples,
    sizes: tuple[int, int],
    folds: Sequence[Rows],
    *,
    checkpoints: Checkpoints | None = None,
    name: str = "clip",
    report: Report = lambda row: None,
) -> FittedPredictor:
    """Fit the heads of one CLIP: one, scored on ``val``, or one per fold, each scored on its own share.

    Args:
        sizes: number of answers and of answer types.
        folds: the rows of ``train`` that each head is not fitted on; empty for one head.
    """
    if not folds:
        fitted = fit_head(recipe, train, val, sizes, checkpoints=checkpoints, name=name, report=report)
        return FittedPredictor(Predictor([fitted.head]), [fitted], Line())
    tried: dict[tuple[float, int], Fitted] = {}

    def fit_fold(recipe: Recipe, number: int, report: Report) -> Fitted:
        """The head of fold ``number``, scored on its share; one that was tried is not fitted again."""
        if (key := (recipe.weight_decay, number)) not in tried:
            rest = np.setdiff1d(np.arange(len(train)), folds[number])
            tried[key] = fit_head(
                recipe,
                train.take(torch.from_numpy(rest)),
                train.take(torch.from_numpy(folds[number])),
                sizes,
                seed=recipe.seed + number,
                checkpoints=checkpoints,
                name=f"{name}-fold{number + 1}" + (f"-decay{recipe.weight_decay:g}" if recipe != asked else ""),
                report=report,
            )
        else:
            for row in tried[key].history:
                report(row)
        return tried[key]

    asked = recipe
    if recipe.decay_trials:
        recipe = choose_weight_decay(recipe, folds, lambda tried, number: fit_fold(tried, number, lambda row: None))
    fits: list[Fitted] = []
    unseen = np.zeros(len(train), np.float32)  # log-odds, each by the head that was not fitted on the record
    for number, held in enumerate(tqdm(folds, desc="fold", unit="", disable=None)):
        fitted = fit_fold(recipe, number, lambda row, fold=number + 1: report({"fold": fold, **row}))  # type: ignore[misc]
        fits.append(fitted)
        with torch.inference_mode():
            batches = train.take(torch.from_numpy(held)).batches()
            parts = [fitted.head(batch.texts, batch.images).answerable for batch in batches]
        unseen[held] = torch.cat(parts).cpu().numpy()
    # It is learnt from single heads, so that it is each head's: the mean of ten is less sure than any of them.
    calibration = find_calibration(recipe.calibration, unseen, train.answerable.cpu().numpy())
    for fitted in fits:
        calibrate(fitted.head, calibration)
    predictor = Predictor([fitted.head for fitted in fits]).to(train.texts.device).eval()
    return FittedPredictor(predictor, fits, calibration)


def choose_weight_decay(recipe: Recipe, folds: Sequence[Rows], fit_fold: Callable[[Recipe, int], Fitted]) -> Recipe:
    """Quadruple the weight decay as long as held-out records are answered better, on folds that hold 1,000 of them.

    Many noisy records need more of it than few clean ones.
    """
    sizes = np.array([len(held) for held in folds])
    trials = range(min(int(np.searchsorted(np.cumsum(sizes), _TRIAL_RECORDS)) + 1, len(folds)))

    def accuracy(candidate: Recipe) -> float:
        scored = [fit_fold(candidate, number).best[HEADLINE] for number in trials]
        return float(np.average(scored, weights=sizes[: len(trials)]))

    best = accuracy(recipe)
    for _ in range(recipe.decay_trials):
        stronger = replace(recipe, weight_decay=4 * recipe.weight_decay)
        if (found := accuracy(stronger)) <= best:
            break
        recipe, best = stronger, found
    print(f"weight decay: {recipe.weight_decay:g}; VQA {best:.2f} on held-out records of train")
    return recipe


def join(parts: Sequence[FittedPredictor], device: torch.device) -> ClipEnsemble:
    """Average the predictors of several CLIPs."""
    return ClipEnsemble([part.predictor for part in parts]).to(device).eval().requires_grad_(False)


@torch.inference_mode()
def predict(ensemble: ClipEnsemble, examples: Sequence[Examples]) -> Predicted:
    """Predict one split, encoded by each of the ensemble's CLIPs."""
    best, answerable = [], []
    for batches in zip(*(each.batches() for each in examples), strict=True):
        result = ensemble([(batch.texts, batch.images) for batch in batches])
        best.append(result.answer.argmax(dim=1))
        answerable.append(result.answerable)
    return Predicted(torch.cat(best), torch.cat(answerable))


def summary(parts: Sequence[FittedPredictor], on_val: dict[str, Any]) -> Row:
    """The scores of what was fitted: those of the kept epoch for one head, else those of the average."""
    fits = [fitted for part in parts for fitted in part.fits]
    if len(fits) == 1:
        return fits[0].best
    losses = {key: float(np.mean([fitted.best[key] for fitted in fits])) for key in ("train_loss", "val_loss")}
    return {"epoch": max(fitted.best["epoch"] for fitted in fits), **losses, **on_val}
