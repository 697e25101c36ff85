"""The web page: HTML of one state, rendered on the server.

Interface to the application (``app.py``):

- ``GET /`` calls ``render(PageState(...))`` with no questions, answers or problem.
- ``POST /`` takes the fields of ``POST /v1/ask`` (multipart/form-data: file ``photo``, one or more ``question``,
  optional ``top``, 5 unless given) and calls ``render`` with the ``answers`` or with the ``problem``. The response's
  status is that of the problem. The page works by this form alone; its script sends the same form and takes the result
  from the returned HTML, so that every sentence has one home.
- ``static/`` beside this module is served under ``/static/``; browsers revalidate it by its ETag.
- Every response has the content security policy in :data:`CSP`: own scripts, styles, and requests alone; previews of
  photos as ``blob:``; no inline script or style, so neither ``style="..."`` nor ``onclick="..."``.

The template escapes all text; callers pass it unescaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vizwiz_client import Answer
from vizwiz_client.contract.wording import DEMO, QUESTION_TRUNCATED, Outcome, quality_in_words
from vizwiz_gateway.problems import Problem

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
TOP = 5  # candidates that the page asks for

# The most frequent of VizWiz's 32,842 questions. Variants are merged; questions about a single product are left out.
SUGGESTIONS = (
    "What is this?",
    "What color is this?",
    "What does this say?",
    "What is in this box?",
    "What is in this can?",
    "What product is this?",
    "What flavor is this?",
    "What is in this bottle?",
    "What is the expiration date?",
    "What do you see?",
    "What kind of coffee is this?",
    "What kind of soup is this?",
    "What color is this shirt?",
    "What is on the screen?",
    "What is this a picture of?",
)

_AGAIN_LATER = "Press Ask again in a minute."
_NO_PHOTO = "There is no photo. Take or choose one, then press Ask."
_NO_QUESTION = "There is no question. Type one, such as “what is this?”, then press Ask."
_AWAY = f"The server that answers is not available. {_AGAIN_LATER} If that fails too, tell the people who run it."
_BY_CODE = {  # of a problem; the page shows the detail of others
    "no-photo": _NO_PHOTO,
    "no-question": _NO_QUESTION,
    "malformed": "The form did not arrive whole. Choose the photo again, then press Ask.",
    "several-photos": "There are two photos, one taken and one chosen. Take or choose one alone, then press Ask.",
    "busy": "Too many people are asking at the moment. Press Ask again in a few seconds.",
    "too-slow": f"No answer came in time. {_AGAIN_LATER}",
    "slow-upload": "The photo took too long to arrive. Choose a smaller one, or ask where the connection is faster.",
    "triton-unavailable": _AWAY,
    "triton-unsuitable": _AWAY,
    "triton-failed": _AWAY,
    "internal": f"The server failed. {_AGAIN_LATER} If that fails too, tell the people who run it.",
}
_SCRIPT_MESSAGES = {  # attributes of the form that the script reads
    "no-photo": _NO_PHOTO,
    "no-question": _NO_QUESTION,
    "waiting": "Still waiting for the answer. Please wait.",
    "lost": "No answer came: the connection was lost, or the photo cannot be read any more. "
    "Check the connection, then press Ask again.",
    "unexpected": "The server sent something else than an answer. Reload the page, then ask again.",
    "not-heard": "Nothing was understood. Dictate again, or type the question.",
    "no-microphone": "The browser may not use the microphone. Allow that in its settings, or type the question.",
    "photo": "Photo:",
}
_TOO_LONG = "The question is too long: only about its first 50 words would be read. Ask it shorter."
_PHOTO_CODES = ("no-photo", "not-a-photo", "malformed", "several-photos", "slow-upload")
_QUESTION_CODES = ("no-question", "too-many-questions")

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class PageState:
    """What the page shows.

    Attributes:
        demo: the served head was fitted on drawn pictures alone. None before Triton's configuration was read.
        max_photo_bytes: size of the largest photo file, bytes.
        timeout_s: longest time for an upload and its answer, seconds.
        questions: the questions of the form, as typed; kept in the form after an answer or an error.
        answers: one for each question, in order; empty before the first, or after an error.
        problem: the error in place of the answers.
        request_id: of the request that was answered; "" on a fresh page.
    """

    demo: bool | None
    max_photo_bytes: int
    timeout_s: float
    questions: Sequence[str] = ()
    answers: Sequence[Answer] = ()
    problem: Problem | None = None
    request_id: str = ""


@dataclass(frozen=True)
class _Result:
    """What the live region says.

    Attributes:
        outcome: for the style, and for what the script does next.
        title: of the document: without the script, the first thing that a screen reader reads.
        lines: sentences.
        guesses: possible answers, best first.
        quality: problems of the photo with their probabilities, most probable first.
        needs_photo: another photo is worth more than another question.
        field: the form's control that an error is about; "" for none.
    """

    outcome: Outcome | Literal["empty", "error"]
    title: str
    lines: Sequence[str]
    guesses: Sequence[str] = ()
    quality: Sequence[str] = ()
    needs_photo: bool = False
    field: Literal["photo", "question", ""] = ""


def render(state: PageState) -> str:
    """The page as an HTML document."""
    return _TEMPLATES.get_template("page.html").render(
        result=_result(state),
        demo=DEMO if state.demo else "",
        question=state.questions[0] if state.questions else "",
        suggestions=SUGGESTIONS,
        request_id=state.request_id,
        max_photo_bytes=state.max_photo_bytes,
        timeout_s=state.timeout_s,
        script_messages={**_SCRIPT_MESSAGES, "too-large": _too_large(state.max_photo_bytes)},
    )


def _result(state: PageState) -> _Result:
    if state.problem:
        text = _explain(state.problem, state)
        return _Result("error", f"Error: {text}", [text], field=_field(state.problem))
    if not state.answers:
        return _Result("empty", "Ask about a photo", ["No question was asked yet."])
    answer = state.answers[0]  # the form has one question; programs that send several use /v1/ask
    words = answer.words
    lines = [*words.lines, *[QUESTION_TRUNCATED] * answer.question_truncated]
    quality = quality_in_words(answer.quality)
    return _Result(words.outcome, words.headline, lines, words.guesses, quality, needs_photo=bool(words.advice))


def _explain(problem: Problem, state: PageState) -> str:
    """What happened and what to do, for a person."""
    if problem.code == "no-question" and state.questions:
        return _TOO_LONG if "characters" in problem.detail else _capitalized(problem.detail)
    if problem.code == "not-a-photo":
        detail = problem.detail.removeprefix("the photo: ")
        if detail.startswith("not a picture"):  # the rest of it shows the file's first bytes
            return "This file is not a photo. Choose a JPEG or PNG file, or take a photo."
        if detail.startswith("the photo is an empty file"):
            return "This photo is an empty file. Choose it again, or take another one."
        if detail.startswith("the picture is damaged"):  # the rest of it is the decoder's text
            return "This photo is damaged or incomplete. Choose it again, or take another one."
        if "pillow-heif" in detail:
            return "This photo is a HEIC file, which this server cannot read. Take it here, or choose a JPEG file."
        return f"This photo cannot be used. {_capitalized(detail)}"
    if problem.code == "too-large":
        return _too_large(state.max_photo_bytes) if _is_about_photo(problem) else _TOO_LONG
    return _BY_CODE.get(problem.code) or _capitalized(problem.detail)


def _too_large(max_photo_bytes: int) -> str:
    limit = f"{max_photo_bytes / 1e6:.3g} MB"
    return (
        f"The photo is too large: it has more than {limit}. Choose a smaller one, or take it with a lower resolution."
    )


def _is_about_photo(problem: Problem) -> bool:
    return "photo" in problem.detail


def _field(problem: Problem) -> Literal["photo", "question", ""]:
    if problem.code == "too-large":
        return "photo" if _is_about_photo(problem) else "question"
    if problem.code in _PHOTO_CODES:
        return "photo"
    return "question" if problem.code in _QUESTION_CODES else ""


def _capitalized(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
