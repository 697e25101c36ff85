"""Finds the calibration of answerability, on predictions for records that the predicting head was not fitted on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression

from training.predictor import Calibration, log_odds
from training.recipe import NONE, PLATT


def find_calibration(method: str, probability: npt.NDArray[np.float32], outcome: npt.NDArray[np.bool_]) -> Calibration:
    """Maximise the likelihood of ``outcome`` [N] under a calibrated ``probability`` [N].

    ``temperature`` finds a scale, ``platt`` a scale and an offset. Nothing is changed where there is one
    outcome only, or where the probability speaks against it: a calibration must not turn a ranking round.
    """
    if method == NONE or outcome.all() or not outcome.any():
        return Calibration()
    yes = torch.from_numpy(probability).double()
    odds = log_odds(yes, 1 - yes).numpy()[:, None]
    line = LogisticRegression(C=np.inf, fit_intercept=method == PLATT).fit(odds, outcome)
    scale, offset = float(line.coef_[0, 0]), float(np.ravel(line.intercept_)[0]) if method == PLATT else 0.0
    return Calibration(scale, offset) if scale > 0 else Calibration()
