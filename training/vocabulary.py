"""The answers a head can give: which answer of a question is its target, and which of those are kept.

``report``  the majority answer among those given with confidence "yes"; of equals, the first one given
``paper``   the most common of all ten answers; of equals, the more frequent one in the whole training set, then the one
            with the smallest mean Levenshtein distance to the ten (arXiv 2206.05281, section 3.1)
``top-k``   the most common of all ten answers, the first of equals; the k most frequent of those are kept
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from training.dataset import Record
from training.metrics import accuracy_leave_one_out, normalise

REPORT = "report"
PAPER = "paper"
TOP_K = "top-k"
RULES = (REPORT, PAPER, TOP_K)


@dataclass(frozen=True)
class Vocabulary:
    """An answer list, and the rule by which a record's target is chosen."""

    rule: str
    answers: list[str]
    frequency: Counter[str] = field(repr=False)  # of every answer of every annotator of the training set: breaks ties

    def target(self, record: Record) -> str | None:
        """The answer a labelled record teaches; None where the rule finds none. It may be outside ``answers``."""
        return _target(record, self.rule, self.frequency)

    def oracle_accuracy(self, records: Sequence[Record]) -> float:
        """Leave-one-out accuracy, in percent, of always choosing the best answer of the list."""
        known = {normalise(answer) for answer in self.answers}
        best = [
            max((accuracy_leave_one_out(answer, record.answers) for answer in known & set(record.answers)), default=0.0)
            for record in records
        ]
        return 100 * float(np.mean(best))


def build_vocabulary(records: Sequence[Record], rule: str = REPORT, size: int = 0) -> Vocabulary:
    """Every target once, in the order of first appearance; by ``top-k``, the ``size`` most frequent, in that order."""
    frequency = Counter(answer for record in records for answer in _answers(record)) if rule == PAPER else Counter()
    targets = [target for record in records if (target := _target(record, rule, frequency)) is not None]
    answers = list(dict.fromkeys(targets))
    if rule == TOP_K:
        answers = [answer for answer, _ in Counter(targets).most_common(size)]
    return Vocabulary(rule, answers, frequency)


def all_confidences_unknown(record: Record) -> bool:
    """Whether no annotator's confidence is known, so that "confident answers" means nothing for this record."""
    return all(confidence is None for confidence in record.confidences)


def majority_answer(record: Record) -> str | None:
    """The report's target: the most frequent answer among those given with confidence "yes"; of equals, the first.

    Where all ten confidences are unknown, all ten answers count. None where nobody was confident: the record then
    teaches the answer type and the answerability, but no answer.
    """
    if all_confidences_unknown(record):
        return _first_most_common(record.answers)
    pairs = zip(record.answers, record.confidences, strict=True)
    return _first_most_common([answer for answer, confidence in pairs if confidence == "yes"])


def one_line(answer: str) -> str:
    """An answer as it stands in the list: a line of a label file, which Triton splits from its value at line breaks."""
    return " ".join(answer.split())


def _target(record: Record, rule: str, frequency: Counter[str]) -> str | None:
    if rule == REPORT:
        return majority_answer(record)
    return _first_most_common(record.answers) if rule == TOP_K else _paper_target(record, frequency)


def _answers(record: Record) -> list[str]:
    return [one_line(answer) for answer in record.answers if answer.strip()]


def _first_most_common(votes: Sequence[str]) -> str | None:
    counts = Counter(one_line(vote) for vote in votes if vote.strip())
    return counts.most_common(1)[0][0] if counts else None  # most_common keeps first-seen order among equals


def _paper_target(record: Record, frequency: Counter[str]) -> str | None:
    answers = _answers(record)
    counts = Counter(answers)
    if not counts:
        return None
    most = max(counts.values())
    equals = [answer for answer, count in counts.items() if count == most]
    often = max(frequency[answer] for answer in equals)
    equals = [answer for answer in equals if frequency[answer] == often]
    if len(equals) == 1:
        return equals[0]
    return min(equals, key=lambda answer: (sum(levenshtein(answer, other) for other in answers), answer))


@lru_cache(maxsize=1 << 16)  # a tie compares the same few answers several times
def levenshtein(a: str, b: str) -> int:
    """The number of insertions, deletions and substitutions of characters that turn ``a`` into ``b``."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
