"""The answers that an evaluation shows: the surest ones that were right, and the surest ones that were wrong."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data import Record, Split
from training.evaluation import Predictions
from vizwiz_client.contract.image import load_photo

_SIDE = 240  # pixels of a picture's longer side
_QUALITY = 75  # of JPEG: about 12 kB a picture


@dataclass(frozen=True)
class Card:
    """One question of the contact sheet."""

    image: str
    picture: str  # data URI of a small JPEG
    question: str
    answer: str
    confidence: float
    answerable: float
    accuracy: float
    given: str  # what the annotators answered
    can_answer: bool


def best_and_worst(
    split: Split, predictions: Predictions, accuracy: npt.NDArray[np.float64], size: int = 12
) -> tuple[list[Card], list[Card]]:
    """Choose up to ``size`` right answers and as many wrong ones (accuracy 0): the surest of each answer, then others.

    The same answer is right for thousands of questions ("unanswerable"): a sheet of it alone would show nothing.
    """
    surest = np.argsort(-predictions.confidence, kind="stable")
    best, worst = (
        [
            _card(split, predictions, accuracy, row)
            for row in _varied(surest[wanted[surest]], predictions.answers)[:size]
        ]
        for wanted in (accuracy >= 1, accuracy <= 0)
    )
    return best, worst


def _varied(rows: npt.NDArray[np.int64], answers: list[str]) -> list[int]:
    """The rows in their order, but the first one of each answer before all others."""
    first: dict[str, int] = {}
    for row in rows.tolist():
        first.setdefault(answers[row], row)
    chosen = set(first.values())
    return [*first.values(), *(row for row in rows.tolist() if row not in chosen)]


def thumbnail(path: Path) -> bytes:
    """A small upright JPEG of a photo, without the photo's metadata."""
    picture = load_photo(path)
    picture.thumbnail((_SIDE, _SIDE))
    picture.info.clear()  # Pillow writes a photo's comment and color profile into its copies
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def _card(split: Split, predictions: Predictions, accuracy: npt.NDArray[np.float64], row: int) -> Card:
    record = split.records[row]
    encoded = base64.b64encode(thumbnail(split.photos / record.image)).decode()
    return Card(
        image=record.image,
        picture=f"data:image/jpeg;base64,{encoded}",
        question=record.question,
        answer=predictions.answers[row],
        confidence=float(predictions.confidence[row]),
        answerable=float(predictions.answerable[row]),
        accuracy=float(accuracy[row]),
        given=_given(record),
        can_answer=bool(record.answerable),
    )


def _given(record: Record) -> str:
    return ", ".join(f"{answer} × {count}" for answer, count in Counter(record.answers).most_common())
