"""``vizwiz-client ask``."""

from __future__ import annotations

import argparse
import glob
import os
import threading
from importlib import import_module
from itertools import product

from vizwiz_client import Answer, ServerError, VizwizError
from vizwiz_client.cli import _exits
from vizwiz_client.cli._connect import connect
from vizwiz_client.cli._streams import put, say, standard_input
from vizwiz_client.cli._text import json_line, sentence, short
from vizwiz_client.contract.errors import escape_controls

STANDARD_INPUT = "-"

_MAX_BYTES = 10_000_000  # of questions


def run(arguments: argparse.Namespace) -> int:
    """Ask every question about every photo, print what is answered, and return the exit code."""
    photos, questions = photos_and_questions(arguments)
    read = {STANDARD_INPUT: _read_photo()} if STANDARD_INPUT in photos else {}
    code = _exits.OK
    said: set[str] = set()  # what is wrong with a photo is said once, not once per question
    with connect(arguments) as client:
        # gRPC takes longer to import than a photo to decode, which does without the interpreter's lock
        threading.Thread(target=import_module, args=("vizwiz_client._protocol",)).start()
        pairs = ((read.get(photo, photo), question) for photo, question in product(photos, questions))
        answers = client.ask_many(pairs, top=arguments.top)
        for (photo, question), answer in zip(product(photos, questions), answers, strict=True):
            if isinstance(answer, ServerError):
                raise answer
            if isinstance(answer, VizwizError):
                code = _exits.code(answer)
            note = _note(photo, question, answer, arguments.quiet)
            if note and note not in said:
                say(note)
                said.add(note)
            if arguments.json:
                put(json_line(_record(photo, question, answer)))
            elif isinstance(answer, Answer):
                names = [_name(photo)] if len(photos) > 1 else []
                names += [short(question)] if len(questions) > 1 else []
                put(escape_controls(": ".join([*names, sentence(answer)])))
    return code


def _read_photo() -> bytes:
    """The photo from standard input, of which no more is read than shows that it is too large."""
    from vizwiz_client.contract.image import MAX_FILE_BYTES  # brings NumPy and Pillow

    return standard_input().read(MAX_FILE_BYTES + 1)


def photos_and_questions(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Tell the photos from the question, which comes last where there is no ``-q``."""
    operands, questions = arguments.operands, arguments.questions
    if not questions:
        if len(operands) < 2:
            got = f"got {operands[0]!r} alone" if operands else "got nothing"
            raise _exits.UsageError(f"{got}, expected at least one photo and then a question; see ask --help")
        *operands, last = operands
        if os.path.isfile(last):  # noqa: PTH113 - Path.is_file raises on a question longer than a file name can be
            raise _exits.UsageError(f"the last argument, {last!r}, is a file, expected a question; see ask --help")
        if rest := next((operand for operand in operands[1:] if _is_a_word(operand)), None):
            raise _exits.UsageError(f"{rest!r} is no photo; if it is part of the question, put quotes around all of it")
        questions = [last]
    if not operands:
        raise _exits.UsageError("got no photo, expected at least one; see ask --help")
    if (operands + questions).count(STANDARD_INPUT) > 1:
        raise _exits.UsageError("got - more than once, but standard input can be read once; give a file instead")
    return [photo for operand in operands for photo in _expanded(operand)], _read_questions(questions)


def _is_a_word(operand: str) -> bool:
    """Whether it looks like a part of a question whose quotes were forgotten: letters alone, and no file."""
    return operand.replace("'", "").isalpha() and not os.path.exists(operand)  # noqa: PTH110 - as above


def _expanded(operand: str) -> list[str]:
    """``*.jpg`` as files, which the shells of Windows leave to the program."""
    if operand == STANDARD_INPUT or os.path.exists(operand):  # noqa: PTH110 - as above
        return [operand]
    return sorted(glob.glob(operand)) or [operand]  # noqa: PTH207 - keeps ./ as it was typed


def _read_questions(questions: list[str]) -> list[str]:
    if STANDARD_INPUT not in questions:
        return questions
    text = standard_input().read(_MAX_BYTES + 1)  # /dev/zero, say, has no end
    if len(text) > _MAX_BYTES:
        raise _exits.UsageError(f"standard input has over {_MAX_BYTES:,} bytes of questions; use batch for so many")
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        raise _exits.UsageError("standard input holds no question, expected one a line")
    at = questions.index(STANDARD_INPUT)
    return questions[:at] + lines + questions[at + 1 :]


def _name(photo: str) -> str:
    return "standard input" if photo == STANDARD_INPUT else photo


def _record(photo: str, question: str, answer: Answer | VizwizError) -> dict[str, object]:
    outcome = answer.to_dict() if isinstance(answer, Answer) else {"error": str(answer)}
    return {"photo": photo, "question": question, **outcome}


def _note(photo: str, question: str, answer: Answer | VizwizError, quiet: bool) -> str:
    if isinstance(answer, VizwizError):
        return f"Error: {'standard input: ' if photo == STANDARD_INPUT else ''}{answer}"
    if quiet or not answer.question_truncated:
        return ""
    return f"Note: the question {short(question)!r} is too long; its end was not read."
