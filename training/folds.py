"""Fit one head, or one per fold, for one CLIP or several, and calibrate the heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from training.baselines import Predicted
from training.calibration import Line, calibrate, find_calibration
from training.checkpoints import Checkpoints
from training.fitting import Examples, Fitted, Row, fit_head
from training.predictor import ClipEnsemble, Predictor
from training.recipe import Recipe
from training.splits import Rows

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
    fits: list[Fitted] = []
    unseen = np.zeros(len(train), np.float32)  # log-odds, each by the head that was not fitted on the record
    for number, held in enumerate(tqdm(folds, desc="fold", unit="", disable=None)):
        rest = np.setdiff1d(np.arange(len(train)), held)
        fit_part, score_part = (train.take(torch.from_numpy(rows)) for rows in (rest, held))
        fitted = fit_head(
            recipe,
            fit_part,
            score_part,
            sizes,
            seed=recipe.seed + number,
            checkpoints=checkpoints,
            name=f"{name}-fold{number + 1}",
            report=lambda row, fold=number + 1: report({"fold": fold, **row}),  # type: ignore[misc]
        )
        fits.append(fitted)
        with torch.inference_mode():
            parts = [fitted.head(batch.texts, batch.images).answerable for batch in score_part.batches()]
        unseen[held] = torch.cat(parts).cpu().numpy()
    # It is learnt from single heads, so that it is each head's: the mean of ten is less sure than any of them.
    calibration = find_calibration(recipe.calibration, unseen, train.answerable.cpu().numpy())
    for fitted in fits:
        calibrate(fitted.head, calibration)
    predictor = Predictor([fitted.head for fitted in fits]).to(train.texts.device).eval()
    return FittedPredictor(predictor, fits, calibration)


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
