"""What the clients return: answers, the served model, the state of the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from vizwiz_client.contract.errors import VizwizError
from vizwiz_client.contract.wording import QUESTION_TRUNCATED, Thresholds, Wording, advise, is_declined, to_words

if TYPE_CHECKING:
    from vizwiz_client.contract.tensors import ImageInput  # which imports NumPy


class Candidate(NamedTuple):
    """One possible answer and its probability, 0 to 1."""

    answer: str
    confidence: float


@dataclass(frozen=True)
class Timings:
    """Seconds spent on one answer."""

    prepare_s: float  # decode and resize the photo, tokenise the questions of its request
    request_s: float  # the request that succeeded, from sending to reply; shared by all of its questions
    total_s: float  # from the call to the answer, retries and the rest of the batch included


@dataclass(frozen=True, repr=False)
class Answer:
    """The answer to one question about one photo. Probabilities are 0 to 1.

    Equality ignores ``request_id`` and ``timings``.

    Attributes:
        candidates: the ``top`` most probable answers, best first.
        answer_type: predicted type of the answer, such as "yes/no", "number", "other" or "unanswerable".
        answerable: calibrated probability that the photo can answer the question.
        head_id: digest of the head that answered, as in the model's name ``gated_head_<digest>``.
        question_truncated: the question was longer than CLIP reads, and its end was ignored.
        request_id: the request's id in the server's log; shared by all questions of a request.
        timings: seconds spent.
        runner_up: the most probable answer after :attr:`answer`, whatever ``top`` is; None if there is none. Labels
            such as "unanswerable" are left out.
        quality: the probability of each issue of the photo ("blur", "framing", ...), most probable first; empty if the
            served head does not predict them.
        thresholds: the served head's thresholds of :attr:`words`, :attr:`advice` and :attr:`sentence`.
        demo: the head was fitted on the demo's drawn pictures; its answers to real photos mean nothing.
    """

    candidates: tuple[Candidate, ...]
    answer_type: str
    answerable: float
    head_id: str
    question_truncated: bool
    request_id: str = field(compare=False)
    timings: Timings = field(compare=False)
    runner_up: Candidate | None = None
    quality: Mapping[str, float] = field(default_factory=dict, hash=False)
    thresholds: Thresholds = field(default_factory=Thresholds)
    demo: bool = False

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
        """Whether the photo probably cannot answer the question.

        True if :attr:`answerable` is under 0.5, or if the most probable answer is a label such as "unanswerable". Show
        :attr:`answer` as a guess then, or not at all.
        """
        return is_declined(self.answerable, self.answer)

    @property
    def words(self) -> Wording:
        """The answer as sentences: headline, how sure the model is, advice, and guesses."""
        more = [self.runner_up] if self.runner_up and self.runner_up not in self.candidates else []
        return to_words(
            [*self.candidates, *more], declined=self.declined, quality=self.quality, thresholds=self.thresholds
        )

    @property
    def sentence(self) -> str:
        """Everything to tell a person, such as "Maybe teapot, or mug. Not sure, 40%."

        If the answer is declined, or nothing in the photo can be recognised, it includes how to take a better photo.
        """
        return " ".join([*self.words.lines, *[QUESTION_TRUNCATED] * self.question_truncated])

    @property
    def advice(self) -> tuple[str, ...]:
        """What is wrong with the photo and what to do, at most two reasons; :attr:`sentence` may leave them out."""
        return advise(self.quality, self.thresholds)

    def to_dict(self) -> dict[str, Any]:
        """All attributes and properties but words and thresholds, as plain values for JSON."""
        return {
            "answer": self.answer,
            "confidence": self.confidence,
            "declined": self.declined,
            "answerable": self.answerable,
            "answer_type": self.answer_type,
            "candidates": [candidate._asdict() for candidate in self.candidates],
            "runner_up": self.runner_up._asdict() if self.runner_up else None,
            "quality": dict(self.quality),
            "advice": list(self.advice),
            "sentence": self.sentence,
            "question_truncated": self.question_truncated,
            "demo": self.demo,
            "head_id": self.head_id,
            "request_id": self.request_id,
            "timings": vars(self.timings).copy(),
        }

    def __repr__(self) -> str:
        guesses = ", or ".join(f"{candidate.answer!r} {candidate.confidence:.0%}" for candidate in self.candidates)
        verdict = f"{'declined, ' if self.declined else ''}answerable {self.answerable:.0%}"
        truncated = ", question truncated" if self.question_truncated else ""
        return (
            f"<Answer {guesses}, {verdict}, type {self.answer_type!r}{truncated}; head {self.head_id}, "
            f"request {self.request_id}, {1000 * self.timings.total_s:.0f} ms>"
        )


@dataclass(frozen=True)
class ModelInfo:
    """The part of the served model's configuration that a client depends on.

    Attributes:
        model: name of the ensemble.
        contract_version: version of the tensor contract; see ``vizwiz_client.contract.tensors``.
        images: image inputs; a photo is sent to each as uint8 [S, S, 3], S being its ``image_size`` in pixels.
        max_batch_size: the largest number of questions in one request.
        models: names of the immutable models in the ensemble: encoders and head, each with its digest.
        demo: the head was fitted on the demo's drawn pictures; its answers to real photos mean nothing.
        serves_quality: the head predicts quality issues of the photo.
        thresholds: probabilities from which advice on quality, and an answer without "maybe", is said.
    """

    model: str
    contract_version: int
    images: tuple[ImageInput, ...]
    max_batch_size: int
    models: tuple[str, ...]
    demo: bool = False
    serves_quality: bool = False
    thresholds: Thresholds = field(default_factory=Thresholds)


@dataclass(frozen=True)
class Check:
    """One of the checks of a :class:`Status`.

    Attributes:
        name: "server", "models", "contract" or "latency".
        ok: the result; None if the check did not run because an earlier one failed.
        text: what was found and, if the check failed, what to do.
        error: the exception behind a failed check, if there was one.
    """

    name: str
    ok: bool | None
    text: str
    error: VizwizError | None = None


@dataclass(frozen=True)
class Status:
    """The state of the server at ``url``: four checks, each depending on those before it.

    Attributes:
        url: the server's address.
        checks: results of "server", "models", "contract" and "latency", in this order.
        latency_s: median seconds from the built-in photo to its answer; None if it was not measured.
        head_id: digest of the head that answered; None if none did.
    """

    url: str
    checks: tuple[Check, ...]
    latency_s: float | None = None
    head_id: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """All attributes as plain values for JSON."""
        checks = {check.name: {"ok": check.ok, "text": check.text} for check in self.checks}
        return {"url": self.url, "ok": self.ok, "latency_s": self.latency_s, "head_id": self.head_id, "checks": checks}
