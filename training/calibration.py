"""Calibrate the answerability of heads on records that they were not fitted on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression

from training.head import GatedHead
from training.recipe import NONE, PLATT


class Line(NamedTuple):
    """Platt's scaling (1999) of log-odds x: ``scale * x + offset``; the default changes nothing.

    An offset of 0 makes it temperature scaling (Guo et al., ICML 2017); the scale is positive, so that no ranking
    changes.
    """

    scale: float = 1.0
    offset: float = 0.0

    def inverse(self) -> Line:
        """The calibration that undoes this one."""
        return Line(1 / self.scale, -self.offset / self.scale)


def find_calibration(method: str, log_odds: npt.NDArray[np.float32], outcome: npt.NDArray[np.bool_]) -> Line:
    """Maximise the likelihood of ``outcome`` [N] under calibrated ``log_odds`` [N].

    ``temperature`` finds a scale, ``platt`` a scale and an offset. Nothing is changed where there is one
    outcome only, or where the log-odds speak against it: a calibration must not turn a ranking round.
    """
    if method == NONE or outcome.all() or not outcome.any():
        return Line()
    odds = log_odds.astype(np.float64)[:, None]
    line = LogisticRegression(C=np.inf, fit_intercept=method == PLATT).fit(odds, outcome)
    scale, offset = float(line.coef_[0, 0]), float(np.ravel(line.intercept_)[0]) if method == PLATT else 0.0
    return Line(scale, offset) if scale > 0 else Line()


def calibrate(head: GatedHead, calibration: Line) -> None:
    """Change the last layer of answerability so that ``head`` gives calibrated log-odds."""
    with torch.no_grad():
        head.answerable.weight.mul_(calibration.scale)
        head.answerable.bias.mul_(calibration.scale).add_(calibration.offset)
