"""The answers a head can give, by the report's rule: every question's majority answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from training.data import Record


def all_confidences_unknown(record: Record) -> bool:
    """Whether no annotator's confidence is known, so that "confident answers" means nothing for this record."""
    return all(confidence is None for confidence in record.confidences)


def majority_answer(record: Record) -> str | None:
    """The most frequent answer among those given with confidence "yes"; of equals, the first one given.

    Where all ten confidences are unknown, all ten answers count. None where nobody was confident: the record then
    teaches the answer type and the answerability, but no answer.
    """
    if all_confidences_unknown(record):
        votes = list(record.answers)
    else:
        pairs = zip(record.answers, record.confidences, strict=True)
        votes = [answer for answer, confidence in pairs if confidence == "yes"]
    # An answer becomes a line of a label file, and Triton splits a label from its value at line breaks.
    counts = Counter(" ".join(vote.split()) for vote in votes if vote.strip())
    return counts.most_common(1)[0][0] if counts else None  # most_common keeps first-seen order among equals


def build_vocabulary(records: Sequence[Record]) -> list[str]:
    """Every majority answer once, in the order of first appearance."""
    return list(dict.fromkeys(answer for record in records if (answer := majority_answer(record)) is not None))
