"""Fit the heads of each CLIP, one or one per fold, and calibrate them on the records that they were not fitted on."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

from training.artifacts import digest_of, staged_file
from training.dataset import Rows
from training.metrics import choose_threshold
from training.model import ClipEnsemble, GatedHead, Predictor, QualityHead, predict
from training.recipe import NO, PLATT, Recipe
from training.trainer import HEADLINE, FeatureDataset, FittedHead, OnEpoch, Row, fit_head, make_head

UNFINISHED = ".unfinished"  # folder within the runs; the dot keeps it from being taken for a run
_TRIAL_RECORDS = 1_000  # an accuracy over fewer is too noisy to choose by


class FinishedHeads:
    """Heads of a fit of several that are finished; the same fit skips them after an interruption.

    They are files in ``runs/.unfinished/<digest>/``; the digest covers settings, data and CLIPs. As a head depends on
    nothing else, two equal fits at the same time write the same heads.
    """

    def __init__(self, runs: Path, config: dict[str, Any]) -> None:
        """Find the folder of the fit with this configuration."""
        self._folder = runs / UNFINISHED / digest_of(json.dumps(config, sort_keys=True, default=str))[:16]

    def load(self, name: str, head: GatedHead) -> FittedHead | None:
        """Load the head ``name`` into ``head``; None if it is not finished or unreadable."""
        try:
            state: dict[str, Any] = torch.load(self._folder / f"{name}.pt", weights_only=True)
        except (FileNotFoundError, UnpicklingError, RuntimeError, EOFError):
            return None
        head.load_state_dict(state["weights"])
        return FittedHead(head.eval().requires_grad_(False), state["history"], state["best"])

    def save(self, name: str, fitted: FittedHead) -> None:
        """Save the head ``name`` atomically."""
        content = io.BytesIO()  # PyTorch's own error for a full disk is a RuntimeError
        torch.save({"weights": fitted.head.state_dict(), "history": fitted.history, "best": fitted.best}, content)
        with staged_file(self._folder / f"{name}.pt") as staging:
            staging.write_bytes(content.getvalue())  # getbuffer() can crash Python 3.12.1 if this fails (gh-111049)

    def delete(self) -> None:
        """Delete all heads."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # missing, or other fits have heads in it
            self._folder.parent.rmdir()


class Calibration(NamedTuple):
    """Platt scaling (1999) of log-odds x, ``scale * x + offset``; the default is the identity.

    The scale is positive, so no ranking changes.
    """

    scale: float = 1.0
    offset: float = 0.0

    def inverse(self) -> Calibration:
        """The calibration that undoes this one."""
        return Calibration(1 / self.scale, -self.offset / self.scale)


def find_calibration(log_odds: npt.NDArray[np.float32], outcome: npt.NDArray[np.bool_]) -> Calibration:
    """Maximise the likelihood of ``outcome`` [N] under calibrated ``log_odds`` [N].

    The identity if there is one outcome only, or if the scale would be negative.
    """
    if outcome.all() or not outcome.any():
        return Calibration()
    line = LogisticRegression(C=np.inf).fit(log_odds.astype(np.float64)[:, None], outcome)
    scale, offset = float(line.coef_[0, 0]), float(np.ravel(line.intercept_)[0])
    return Calibration(scale, offset) if scale > 0 else Calibration()


def calibrate(layer: nn.Linear, calibration: Calibration, output: int = 0) -> None:
    """Change ``layer``, the last one of a head, so that its ``output`` is calibrated log-odds."""
    with torch.no_grad():
        layer.weight[output].mul_(calibration.scale)
        layer.bias[output].mul_(calibration.scale).add_(calibration.offset)


@torch.no_grad()
def standardised(heads: Sequence[QualityHead], images: Tensor) -> QualityHead:
    """The mean log-odds of ``heads`` as one head, scaled to mean 0 and variance 1 over ``images`` [N, D].

    Answerability reads them on the photos that the heads were fitted on, where they are a little too sure. Two things
    bound that: the L2 penalty of the heads was chosen on held-out photos, and a gated head is scored and calibrated on
    records that neither itself nor its quality head was fitted on.
    """
    result = copy.deepcopy(heads[0])
    result.norm.reset_parameters()  # each LayerNorm's scale and shift become part of the linear layer
    result.linear.weight.copy_(torch.stack([head.linear.weight * head.norm.weight for head in heads]).mean(dim=0))
    result.linear.bias.copy_(torch.stack([head.linear(head.norm.bias) for head in heads]).mean(dim=0))
    deviation, mean = torch.std_mean(result(images), dim=0, correction=0)
    deviation = deviation.clamp(min=1e-6)
    result.linear.weight.div_(deviation[:, None])
    result.linear.bias.sub_(mean).div_(deviation)
    return result


class FittedPredictor(NamedTuple):
    """The heads of one CLIP."""

    predictor: Predictor
    fits: list[FittedHead]
    calibration: Calibration  # of the log-odds of answerability; already part of each head's weights
    weight_decay: float = 0.0  # that the heads were fitted with


def fit_predictor(
    recipe: Recipe,
    train: FeatureDataset,
    val: FeatureDataset,
    sizes: tuple[int, int],
    folds: Sequence[Rows],
    *,
    finished: FinishedHeads | None = None,
    name: str = "clip",
    quality: Sequence[QualityHead] = (),
    on_epoch: OnEpoch = lambda row: None,
) -> FittedPredictor:
    """Fit the heads of one CLIP: one that is scored on ``val``, or one per fold that is scored on its fold.

    Args:
        recipe: the settings.
        train: records to fit on.
        val: records to score a single head on.
        sizes: number of answers V and of answer types K.
        folds: rows of ``train`` that each head is not fitted on; empty for a single head.
        finished: heads of an interrupted fit.
        name: prefix of the heads' names in ``finished``.
        quality: the CLIP's heads of photo quality, one for each fold, for a recipe whose answerability reads them. A
            single head reads the mean of their log-odds.
        on_epoch: called after each epoch with its scores, as by ``fit_head``; in a fit of folds with ``fold`` too,
            from 1.
    """

    def fit_or_load(
        recipe: Recipe, train: FeatureDataset, val: FeatureDataset, number: int, name: str, on_epoch: OnEpoch
    ) -> FittedHead:
        inputs = None
        if recipe.answerable_quality != NO:
            inputs = standardised([quality[number]] if folds else quality, train.images[0])
        if finished and (fitted := finished.load(name, make_head(recipe, train, *sizes, inputs))):
            for row in fitted.history:
                on_epoch(row)
            return fitted
        fitted = fit_head(recipe, train, val, sizes, seed=recipe.seed + number, quality=inputs, on_epoch=on_epoch)
        if finished:
            finished.save(name, fitted)
        return fitted

    if not folds:
        fitted = fit_or_load(recipe, train, val, 0, name, on_epoch)
        return FittedPredictor(Predictor([fitted.head]), [fitted], Calibration(), recipe.weight_decay)
    trials: dict[tuple[float, int], FittedHead] = {}

    def fit_fold(candidate: Recipe, number: int, on_epoch: OnEpoch) -> FittedHead:
        """Fit the head of a fold, unless it was fitted in a trial with the same weight decay."""
        if (key := (candidate.weight_decay, number)) in trials:
            for row in trials[key].history:
                on_epoch(row)
            return trials[key]
        held_out = folds[number]
        rest = np.setdiff1d(np.arange(len(train)), held_out)
        trials[key] = fit_or_load(
            candidate,
            train.select(torch.from_numpy(rest)),
            train.select(torch.from_numpy(held_out)),
            number,
            f"{name}-fold{number + 1}" + (f"-decay{candidate.weight_decay:g}" if candidate != recipe else ""),
            on_epoch,
        )
        return trials[key]

    chosen = recipe
    if recipe.decay_trials:
        chosen = choose_weight_decay(recipe, folds, lambda tried, number: fit_fold(tried, number, lambda row: None))
    fits: list[FittedHead] = []
    log_odds = np.zeros(len(train), np.float32)  # of each record, by the head that was not fitted on it
    for number, held_out in enumerate(tqdm(folds, desc="fold", unit="", disable=None)):
        fitted = fit_fold(chosen, number, lambda row, fold=number + 1: on_epoch({"fold": fold, **row}))  # type: ignore[misc]
        fits.append(fitted)
        with torch.inference_mode():
            batches = train.select(torch.from_numpy(held_out)).batches()
            parts = [fitted.head(batch.texts, batch.images).answerable for batch in batches]
        log_odds[held_out] = torch.cat(parts).cpu().numpy()
    calibration = Calibration()
    if recipe.calibration == PLATT:  # of single heads: their mean is less confident than each of them
        calibration = find_calibration(log_odds, train.answerable.cpu().numpy())
    for fitted in fits:
        calibrate(fitted.head.answerable, calibration)
    predictor = Predictor([fitted.head for fitted in fits]).to(train.texts.device).eval()
    return FittedPredictor(predictor, fits, calibration, chosen.weight_decay)


def choose_weight_decay(recipe: Recipe, folds: Sequence[Rows], fit_fold: Callable[[Recipe, int], FittedHead]) -> Recipe:
    """Try 4, 16, ... times the weight decay, and stop when VQA accuracy on held-out records no longer rises.

    Only as many folds are tried as hold out 1,000 records together. Many noisy records need more weight decay than few
    clean ones.
    """
    sizes = np.array([len(held_out) for held_out in folds])
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


@torch.inference_mode()
def choose_sure_from(
    parts: Sequence[FittedPredictor], train: Sequence[FeatureDataset], folds: Sequence[Rows]
) -> float | None:
    """The confidence from which on an answer is right in 70% of the training records, each by heads not fitted on it.

    Args:
        parts: the fitted heads of each CLIP.
        train: the training records, encoded by each CLIP.
        folds: rows of ``train`` that each head was not fitted on.

    Returns:
        None if no confidence is enough, or without folds.
    """
    confidence, accuracy = np.zeros(len(train[0])), np.zeros(len(train[0]))
    for number, held_out in enumerate(folds):
        rows = torch.from_numpy(held_out)
        part = average([FittedPredictor(Predictor([each.fits[number].head]), [], Calibration()) for each in parts])
        fold = [dataset.select(rows) for dataset in train]
        predicted = predict(part, [dataset.features for dataset in fold])
        confidence[held_out] = predicted.confidence.numpy()
        accuracy[held_out] = fold[0].scores.accuracies(predicted.best)[0].numpy()
    return choose_threshold(confidence, accuracy) if folds else None


def average(parts: Sequence[FittedPredictor]) -> ClipEnsemble:
    """Average the predictors of several CLIPs."""
    return ClipEnsemble([part.predictor for part in parts]).eval().requires_grad_(False)


def summarise(parts: Sequence[FittedPredictor], on_val: dict[str, Any]) -> Row:
    """Scores of a fit: of the kept epoch for a single head, else ``on_val``, those of the averaged heads."""
    fits = [fitted for part in parts for fitted in part.fits]
    if len(fits) == 1:
        return fits[0].best
    losses = {key: float(np.mean([fitted.best[key] for fitted in fits])) for key in ("train_loss", "val_loss")}
    return {"epoch": max(fitted.best["epoch"] for fitted in fits), **losses, **on_val}
