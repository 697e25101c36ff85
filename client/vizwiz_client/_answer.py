"""What the server answered to one question about one photo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

DECLINE_BELOW = 0.5  # the served probability is calibrated for this threshold
NO_ANSWER = ("unanswerable", "unsuitable", "unsuitable image")  # labels of VizWiz that decline in words


class Candidate(NamedTuple):
    """One possible answer and its probability, 0 to 1."""

    answer: str
    confidence: float


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds."""

    prepare_s: float  # decoding and resizing this photo, tokenising this question (of a batch: its questions)
    request_s: float  # the request that brought the answer, from sending to the reply; a batch shares it
    total_s: float  # from the call to the answer, with retries and the rest of the batch


@dataclass(frozen=True, repr=False)
class Answer:
    """The answer to one question about one photo. Probabilities are 0 to 1.

    Two answers are equal when they say the same: ``request_id`` and ``timings`` are not compared.
    """

    candidates: tuple[Candidate, ...]  # the ``top`` most probable answers, best first
    answer_type: str  # the kind of answer expected, such as "yes/no", "number", "other", "unanswerable"
    answerable: float  # probability that the photo can answer the question at all
    head_id: str  # digest in the name of the head that answered: which published model this was
    question_truncated: bool  # the question was longer than CLIP reads; its end was not considered
    request_id: str = field(compare=False)  # names the request in the server's log; a batch shares it
    timings: Timings = field(compare=False)

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
        """Whether the photo probably cannot answer the question: show :attr:`answer` as a guess, or not at all.

        Either :attr:`answerable` is under 0.5, or the most probable answer says so itself, such as "unanswerable".
        """
        return self.answerable < DECLINE_BELOW or self.answer in NO_ANSWER

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
            "head_id": self.head_id,
            "request_id": self.request_id,
            "timings": vars(self.timings).copy(),
        }

    def __repr__(self) -> str:
        said = ", or ".join(f"{candidate.answer!r} {candidate.confidence:.0%}" for candidate in self.candidates)
        verdict = f"{'declined, ' if self.declined else ''}answerable {self.answerable:.0%}"
        cut = ", question truncated" if self.question_truncated else ""
        return (
            f"<Answer {said}, {verdict}, type {self.answer_type!r}{cut}; head {self.head_id}, "
            f"request {self.request_id}, {1000 * self.timings.total_s:.0f} ms>"
        )
