"""The two files that the VizWiz-VQA evaluation server takes: task 1 is the answer, task 2 the answerability.

https://vizwiz.org/tasks-and-datasets/vqa/: ``[{"image", "answer"}]`` and ``[{"image", "answerable"}]``, where
``answerable`` is a confidence in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.storage import write_json

ANSWERS_SUBMISSION = "submission_answers.json"
ANSWERABILITY_SUBMISSION = "submission_answerability.json"


class SubmissionError(Exception):
    """Predictions that the evaluation server would refuse or misread."""


def write_submissions(
    folder: Path, images: Sequence[str], answers: Sequence[str], answerable: npt.NDArray[np.float32]
) -> list[Path]:
    """Write both files for N photos, in their order; returns their paths.

    Args:
        images: the photos' names.
        answers: the predicted answer of each.
        answerable: fp32 [N], how likely each photo can answer its question.

    Raises:
        SubmissionError: lengths differ, a photo comes twice, an answer is empty, or a confidence is outside [0, 1].
    """
    if problems := list(_problems(images, answers, answerable)):
        raise SubmissionError("the submission would not be accepted: " + "; ".join(problems))
    first, second = folder / ANSWERS_SUBMISSION, folder / ANSWERABILITY_SUBMISSION
    write_json(first, [{"image": image, "answer": answer} for image, answer in zip(images, answers, strict=True)])
    confidences = [float(confidence) for confidence in answerable]
    write_json(
        second, [{"image": image, "answerable": score} for image, score in zip(images, confidences, strict=True)]
    )
    return [first, second]


def _problems(images: Sequence[str], answers: Sequence[str], answerable: npt.NDArray[np.float32]) -> list[str]:
    if not len(images) == len(answers) == len(answerable):
        return [f"{len(images)} photos, {len(answers)} answers and {len(answerable)} confidences"]
    problems = []
    if repeated := len(images) - len(set(images)):
        problems.append(f"{repeated} photo(s) come more than once")
    if empty := sum(not answer.strip() for answer in answers):
        problems.append(f"{empty} answer(s) are empty")
    # Written so that NaN, which compares false, is a problem.
    if outside := int(np.sum(~((answerable >= 0) & (answerable <= 1)))):
        problems.append(f"{outside} confidence(s) are outside [0, 1]")
    return problems
