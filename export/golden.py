"""The golden request: a photo, a question and the answer that a server of this head must give.

It travels in the head's folder, as immutable as the head. After a load, whoever loaded it asks the question about
``golden.jpg``; ``golden.json`` says what has to come back:

==============  ==========================================================================================
``question``    as text
``expected``    what PyTorch answers: ``candidates`` (the five most probable answers with their ``confidence``),
                ``answer_types`` (all of them, likewise), ``answerable``, ``head_id``
``tolerance``   how far each probability may be from it; so compare the confidence of each candidate and type, not
                their order: two that are closer than this may come in either
==============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.parity import reference_answers
from export.parity_inputs import GOLDEN_QUESTION
from export.proof import Proof
from export.tolerances import Tolerance
from training.artifacts import write_json
from training.run import Run

PHOTO_FILE = "golden.jpg"
REQUEST_FILE = "golden.json"
_CANDIDATES = 5


def write_golden(folder: Path, run: Run, proof: Proof, digest: str, tolerance: Tolerance) -> None:
    """Write the question, and the answer of ``run``'s head, published under ``digest``, beside the golden photo."""
    first = [features["drawn"].reference[:1] for features in (proof.images, proof.texts)]
    answer, answer_type, answerable = reference_answers(run.load_predictor(), *first)
    request: dict[str, Any] = {
        "question": GOLDEN_QUESTION,
        "expected": {
            "candidates": _best("answer", run.answers, answer[0], _CANDIDATES),
            "answer_types": _best("answer_type", run.answer_types, answer_type[0], len(run.answer_types)),
            "answerable": float(answerable[0, 0]),
            "head_id": digest,
        },
        "tolerance": tolerance.relative_error,
    }
    write_json(folder / REQUEST_FILE, request)


def _best(what: str, labels: Sequence[str], probabilities: npt.NDArray[np.float32], count: int) -> list[dict[str, Any]]:
    best = np.argsort(-probabilities, kind="stable")[:count]
    return [{what: labels[index], "confidence": float(probabilities[index])} for index in best]
