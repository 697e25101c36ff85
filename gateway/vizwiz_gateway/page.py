"""The web page: HTML of one state, rendered on the server.

Interface to the application (``app.py``):

- ``GET /`` calls ``render(PageState(...))`` with no questions, answers or problem.
- ``POST /`` takes the fields of ``POST /v1/ask`` (multipart/form-data: file ``photo``, one or more ``question``,
  optional ``top``, 5 unless given) and calls ``render`` with the ``answers`` or with the ``problem``. The response's
  status is that of the problem. The page works without JavaScript by this form alone; its script may send the same form
  to ``/`` and take the result from the returned HTML, or to ``/v1/ask`` for JSON (``docs/gateway.md``).
- ``static/`` beside this module is served under ``/static/``; browsers revalidate it by its ETag.
- Every response has the content security policy in :data:`CSP`: own scripts, styles, and requests alone; previews of
  photos as ``blob:``; no inline script or style, so neither ``style="..."`` nor ``onclick="..."``.

The caller escapes nothing: ``render`` escapes all text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vizwiz_client import Answer
from vizwiz_gateway.problems import Problem

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
TOP = 5  # candidates that the page asks for


@dataclass(frozen=True)
class PageState:
    """What the page shows.

    Attributes:
        demo: the served head has learnt drawn pictures only. None if Triton has not said yet.
        max_photo_bytes: size of the largest photo file, bytes.
        questions: the questions of the form, as typed; kept in the form after an answer or an error.
        answers: one for each question, in order; empty before the first, or after an error.
        problem: the error in place of the answers.
        request_id: of the request that was answered; "" on a fresh page.
    """

    demo: bool | None
    max_photo_bytes: int
    questions: Sequence[str] = ()
    answers: Sequence[Answer] = ()
    problem: Problem | None = None
    request_id: str = ""


def render(state: PageState) -> str:
    """The page as an HTML document."""
    result = "".join(f"<p>{escape(answer.answer)}</p>" for answer in state.answers)
    if state.problem:
        result = f"<p>{escape(state.problem.detail)}</p>"
    question = escape(state.questions[0]) if state.questions else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Ask about a photo</title>
<link rel="stylesheet" href="/static/page.css">
</head>
<body>
<main>
<h1>Ask about a photo</h1>
<p>Answers can be wrong. Do not rely on them for medicines, money, food safety or traffic.</p>
<form method="post" enctype="multipart/form-data">
<p><label for="photo">Photo</label> <input id="photo" name="photo" type="file" accept="image/*" required></p>
<p><label for="question">Question</label> <input id="question" name="question" value="{question}" required></p>
<button>Ask</button>
</form>
<div role="status">{result}</div>
</main>
</body>
</html>
"""
