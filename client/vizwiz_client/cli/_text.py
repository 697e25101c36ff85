"""What the commands say: lines that a screen reader reads well, without colours, and JSON for machines."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

from vizwiz_client import Answer
from vizwiz_client._answer import NO_ANSWER


def sentence(answer: Answer) -> str:
    """The answer in a line of plain words."""
    guesses = [candidate for candidate in answer.candidates if candidate.answer not in NO_ANSWER]
    spoken = [f"{guess.answer}, {guess.confidence:.0%} sure" for guess in guesses]
    if not answer.declined:
        return "; or ".join(spoken)
    refusal = "The photo probably cannot answer this."
    return f"{refusal} Best guess: {'; or '.join(spoken)}" if spoken else refusal


def short(question: str) -> str:
    """The question on one line of at most 60 characters."""
    return textwrap.shorten(question, 60, placeholder="...")


def json_line(record: Any) -> str:
    """``record`` as JSON on one line; all in ASCII where standard output is not UTF-8."""
    is_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")
    return json.dumps(record, ensure_ascii=not is_utf8)
