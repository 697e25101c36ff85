"""From encoded splits to what predicts: a head or one per fold, for one CLIP or several, and its calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from training.calibration import find_calibration
from training.checkpoints import Checkpoints
from training.fitting import Examples, Fitted, Row, fit_head, scores
from training.predictor import ClipEnsemble, Predictor
from training.recipe import NONE, Recipe
from training.splits import Rows

Answerability = npt.NDArray[np.float32]
Report = Callable[[Row], None]


class FittedPredictor(NamedTuple):
    """What was fitted on one CLIP."""

    predictor: Predictor
    fits: list[Fitted]  # one per head
    unseen: Answerability  # [N]: calibrated, each by the head that was not fitted on the record; empty for one head


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
        return FittedPredictor(Predictor([fitted.head]), [fitted], np.empty(0, np.float32))
    fits: list[Fitted] = []
    unseen = np.zeros(len(train), np.float32)
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
        unseen[held] = answerability_of(ClipEnsemble([Predictor([fitted.head])]), [score_part])
    calibration = find_calibration(recipe.calibration, unseen, train.answerable.cpu().numpy())
    with torch.inference_mode():
        calibrated = calibration(torch.from_numpy(unseen), torch.from_numpy(1 - unseen)).numpy()
    predictor = Predictor([fitted.head for fitted in fits], calibration).to(train.texts.device).eval()
    return FittedPredictor(predictor, fits, calibrated)


def join(recipe: Recipe, parts: Sequence[FittedPredictor], answerable: torch.Tensor) -> ClipEnsemble:
    """Average the predictors of several CLIPs; where the recipe calibrates, their average is calibrated again.

    Args:
        answerable: bool [N], the labels of the training records.
    """
    ensemble = ClipEnsemble([part.predictor for part in parts])
    if len(parts) > 1 and recipe.calibration != NONE:
        mean = np.mean([part.unseen for part in parts], axis=0)
        ensemble.calibration = find_calibration(recipe.calibration, mean, answerable.cpu().numpy())
    return ensemble.to(answerable.device).eval().requires_grad_(False)


@torch.inference_mode()
def score(ensemble: ClipEnsemble, examples: Sequence[Examples]) -> dict[str, float]:
    """Official metrics of ``ensemble`` on one split, encoded by each of its CLIPs."""
    best, answerable = [], []
    for batches in zip(*(each.batches() for each in examples), strict=True):
        result = ensemble([(batch.texts, batch.images) for batch in batches])
        best.append(result.answer.argmax(dim=1))
        answerable.append(result.answerable)
    return scores(torch.cat(best), torch.cat(answerable), examples[0])


@torch.inference_mode()
def answerability_of(ensemble: ClipEnsemble, examples: Sequence[Examples]) -> Answerability:
    """The answerability [N] that ``ensemble`` gives the records of one split."""
    parts = [
        ensemble([(batch.texts, batch.images) for batch in batches]).answerable
        for batches in zip(*(each.batches() for each in examples), strict=True)
    ]
    answerable: Answerability = torch.cat(parts).cpu().numpy()
    return answerable


def summary(parts: Sequence[FittedPredictor], on_val: dict[str, Any]) -> Row:
    """The scores of what was fitted: those of the kept epoch for one head, else those of the average."""
    fits = [fitted for part in parts for fitted in part.fits]
    if len(fits) == 1:
        return fits[0].best
    losses = {key: float(np.mean([fitted.best[key] for fitted in fits])) for key in ("train_loss", "val_loss")}
    return {"epoch": max(fitted.best["epoch"] for fitted in fits), **losses, **on_val}
