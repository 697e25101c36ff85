"""The commands ``vizwiz-client ask`` and ``vizwiz-client status``."""

from __future__ import annotations

import argparse
import glob
import os
import textwrap
import threading
from collections.abc import Iterator
from importlib import import_module
from itertools import product

from vizwiz_client import Answer, ServerError, Tls, VizwizClient, VizwizError
from vizwiz_client.cli import _output
from vizwiz_client.cli._output import STANDARD_INPUT, UsageError, print_error, print_json, print_line, standard_input
from vizwiz_client.contract.errors import escape_controls
from vizwiz_client.contract.wording import DEMO, quality_in_words


def ask(arguments: argparse.Namespace) -> int:
    """Ask every question about every photo, print the answers, and return the exit code."""
    photos, questions = photos_and_questions(arguments)
    piped = {STANDARD_INPUT: _read_photo()} if STANDARD_INPUT in photos else {}
    code = _output.OK
    printed: set[str] = set()  # errors and notes, so that one is not repeated for each question about a photo
    with connect(arguments) as client:
        # import gRPC while photos are decoded, which releases the GIL
        threading.Thread(target=import_module, args=("vizwiz_client._protocol",)).start()
        pairs = ((piped.get(photo, photo), question) for photo, question in product(photos, questions))
        answers = client.ask_many(pairs, top=arguments.top)
        for (photo, question), answer in zip(product(photos, questions), answers, strict=True):
            if isinstance(answer, ServerError):
                raise answer
            if isinstance(answer, VizwizError):
                code = _output.exit_code(answer)
            for note in _notes(photo, question, answer, arguments):
                if note not in printed:
                    print_error(note)
                    printed.add(note)
            if arguments.json:
                outcome = answer.to_dict() if isinstance(answer, Answer) else {"error": str(answer)}
                print_json({"photo": photo, "question": question, **outcome})
            elif isinstance(answer, Answer):
                names = ["standard input" if photo == STANDARD_INPUT else photo] if len(photos) > 1 else []
                names += [_shorten(question)] if len(questions) > 1 else []
                text = sentence(answer, arguments.top, with_quality=arguments.quality)
                print_line(escape_controls(": ".join([*names, text])))
    return code


def status(arguments: argparse.Namespace) -> int:
    """Print the result of each check, and return the exit code."""
    with connect(arguments) as client:
        result = client.status(max_latency_s=arguments.max_latency)
    if arguments.json:
        print_json(result.to_dict())
    else:
        for check in result.checks:
            verdict = {True: "ok, ", False: "failed, ", None: ""}[check.ok]
            if not (check.ok and arguments.quiet):
                print_line(escape_controls(f"{check.name}: {verdict}{check.text}"))
    for check in result.checks:
        if check.error:
            return _output.exit_code(check.error)
    return _output.OK if result.ok else _output.SOME_FAILED


def connect(arguments: argparse.Namespace) -> VizwizClient:
    """Create the client from the options; nothing is sent yet. Raises UsageError."""
    files = (arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    try:
        return VizwizClient(
            arguments.url,
            timeout_s=arguments.timeout,
            retries=arguments.retries,
            tls=Tls(*files) if any(files) else None,
            headers=dict(arguments.header),
            fast_decode=getattr(arguments, "fast_decode", False),
        )
    except (VizwizError, ValueError, OSError) as error:
        raise UsageError(error) from error


def sentence(answer: Answer, top: int, *, with_quality: bool) -> str:
    """The answer in plain words, on one line, without colours: a screen reader reads it well."""
    words = answer.words
    parts = list(words.lines)
    if with_quality:
        parts += [advice for advice in answer.advice if advice not in parts]
    others = words.guesses[:top] if words.outcome == "declined" else words.guesses[1:top]
    if others:
        parts.append(f"{'Best guess' if words.outcome == 'declined' else 'Or'}: {'; or '.join(others)}.")
    if with_quality and answer.quality:
        parts.append(f"Photo: {'; '.join(quality_in_words(answer.quality))}.")
    return " ".join(parts)


def photos_and_questions(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Split the operands into photos and questions. Raises UsageError."""
    operands, questions = arguments.operands, arguments.questions
    if not questions:
        if len(operands) < 2:
            got = f"got {operands[0]!r} alone" if operands else "got nothing"
            raise UsageError(f"{got}, expected at least one photo and then a question; see ask --help")
        *operands, last = operands
        if os.path.isfile(last):  # noqa: PTH113 - Path.is_file raises if a question is too long for a file name
            raise UsageError(f"the last argument, {last!r}, is a file, expected a question; see ask --help")
        if word := next((operand for operand in operands[1:] if _is_word(operand)), None):
            raise UsageError(f"{word!r} is not a photo; if it is part of the question, put quotes around all of it")
        questions = [last]
    if not operands:
        raise UsageError("got no photo, expected at least one; see ask --help")
    if operands.count(STANDARD_INPUT) > 1:
        raise UsageError("got - more than once, but standard input can be read once; give a file instead")
    return [photo for operand in operands for photo in _expand(operand)], questions


def _is_word(operand: str) -> bool:
    """Whether ``operand`` looks like part of a question without quotes: letters, and not a file."""
    return operand.replace("'", "").isalpha() and not os.path.exists(operand)  # noqa: PTH110 - as above


def _expand(operand: str) -> list[str]:
    """Expand ``*.jpg``, as the shells of Windows do not."""
    if operand == STANDARD_INPUT or os.path.exists(operand):  # noqa: PTH110 - as above
        return [operand]
    return sorted(glob.glob(operand)) or [operand]  # noqa: PTH207 - Path.glob would drop ./


def _read_photo() -> bytes:
    """The photo on standard input; at most one byte more than is accepted."""
    from vizwiz_client.contract.image import MAX_FILE_BYTES  # imports NumPy and Pillow

    return standard_input().read(MAX_FILE_BYTES + 1)


def _notes(photo: str, question: str, answer: Answer | VizwizError, arguments: argparse.Namespace) -> Iterator[str]:
    if isinstance(answer, VizwizError):
        yield f"Error: {'standard input: ' if photo == STANDARD_INPUT else ''}{answer}"
        return
    if arguments.quiet:
        return
    if answer.demo:
        yield DEMO
    if answer.question_truncated:
        yield f"Note: the question {_shorten(question)!r} is too long; its end was ignored."
    if arguments.quality and not answer.quality:
        yield "Note: the served model was fitted without photo quality, so nothing is known about it."


def _shorten(question: str) -> str:
    return textwrap.shorten(question, 60, placeholder="...")
