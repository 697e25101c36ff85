"""What the server answered to one question about one photo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

DECLINE_BELOW = 0.5  # the served probability is calibrated for this threshold


class Candidate(NamedTuple):
    """One possible answer and its probability, 0 to 1."""

    answer: str
    confidence: float


@dataclass(frozen=True)
class Answer:
    """The answer to one question about one photo. Probabilities are 0 to 1."""

    candidates: tuple[Candidate, ...]  # the ``top`` most probable answers, best first
    answer_type: str  # the kind of answer expected, such as "yes/no", "number", "other", "unanswerable"
    answerable: float  # probability that the photo can answer the question at all
    head: str  # digest of the head that answered: which published model this was
    question_truncated: bool  # the question was longer than CLIP reads; its end was not considered

    @property
    def answer(self) -> str:
        """The most probable answer."""
        return self.candidates[0].answer

    @property
    def confidence(self) -> float:
        """The probability of :attr:`answer`."""
        return self.candidates[0].confidence

    @property
    def declined(self) -> bool:
        """Whether the photo probably cannot answer the question: show :attr:`answer` as a guess, or not at all."""
        return self.answerable < DECLINE_BELOW

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain values, ready for JSON."""
        return {
            "answer": self.answer,
            "confidence": self.confidence,
            "declined": self.declined,
            "answerable": self.answerable,
            "answer_type": self.answer_type,
            "candidates": [candidate._asdict() for candidate in self.candidates],
            "question_truncated": self.question_truncated,
            "head": self.head,
        }
