"""The command ``vizwiz-client``: a thin skin over :class:`vizwiz_client.VizwizClient`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence

from vizwiz_client import Answer, QuestionError, ServerError, VizwizClient, VizwizError, __version__
from vizwiz_client._settings import DEFAULT_TIMEOUT_S, DEFAULT_URL

OK, SERVER_TROUBLE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_NO_ANSWER = ("unanswerable", "unsuitable", "unsuitable image")  # labels of VizWiz that say what `declined` says

_ASK_HELP = """\
Ask one question about a photo, or several questions about several photos.

The last argument is the question and those before it are photos. With -q, which can be repeated, every argument is
a photo, and every question is asked about every photo.

examples:
  vizwiz-client ask img.jpg "what is this?"
  vizwiz-client ask front.jpg back.jpg "when does this expire?"
  vizwiz-client ask *.jpg -q "what is this?" -q "what colour is it?"
  vizwiz-client ask img.jpg "what is this?" --top 3
  vizwiz-client ask *.jpg "what is this?" --json > answers.jsonl
"""

_OUTPUT_HELP = """\
output:
  One line per photo and question, in that order, as soon as it is known:
    banana, 92% sure
    The photo probably cannot answer this. Best guess: banana, 31% sure
  Several photos or questions are named at the start of the line. Errors and notes go to standard error.

  With --json each line is a JSON object (JSON Lines): photo, question, then answer, confidence, declined, answerable,
  answer_type, candidates, question_truncated, head_id, request_id, timings; or, for a photo or question that cannot be
  used, error.

exit status:
  0  every question was answered, a declined answer included
  1  server trouble: not running, not the right server, overloaded, too slow; the questions that remain are not asked
  2  bad input: the command line, a photo or a question; the other photos and questions are answered all the same
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit status."""
    try:
        return _ask(_arguments(argv))
    except VizwizError as error:
        _say(f"Error: {error}")
        return _status(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush would fail again
        return OK


def _status(error: VizwizError) -> int:
    return SERVER_TROUBLE if isinstance(error, ServerError) else BAD_INPUT


def _ask(arguments: argparse.Namespace) -> int:
    status = OK
    photos, questions = _photos_and_questions(arguments)
    said: set[str] = set()  # what is wrong with a photo is said once, not once per question
    with VizwizClient(arguments.url, timeout_s=arguments.timeout) as client:
        for photo in photos:
            pairs = [(photo, question) for question in questions]
            answers = client.ask_batch(pairs, top=arguments.top, return_errors=True)
            for question, answer in zip(questions, answers, strict=True):
                note = _note(question, answer)
                if note and note not in said:
                    _say(note)
                    said.add(note)
                if isinstance(answer, VizwizError):
                    status = _status(answer)
                names = [photo] if len(photos) > 1 else []
                names += [_short(question)] if len(questions) > 1 else []
                _print_answer(answer, photo, question, names, arguments.json)
    return status


def _print_answer(answer: Answer | VizwizError, photo: str, question: str, names: list[str], as_json: bool) -> None:
    if as_json:
        outcome = answer.to_dict() if isinstance(answer, Answer) else {"error": str(answer)}
        print(json.dumps({"photo": photo, "question": question, **outcome}, ensure_ascii=False), flush=True)
    elif isinstance(answer, Answer):
        print(": ".join([*names, _sentence(answer)]), flush=True)


def _note(question: str, answer: Answer | VizwizError) -> str:
    if isinstance(answer, VizwizError):
        return f"Error: {answer}"
    cut = f"Note: the question {_short(question)!r} is too long; its end was not read."
    return cut if answer.question_truncated else ""


def _short(question: str) -> str:
    return textwrap.shorten(question, 60, placeholder="...")


def _sentence(answer: Answer) -> str:
    """Say the answer in a line that a screen reader reads well."""
    guesses = [candidate for candidate in answer.candidates if candidate.answer not in _NO_ANSWER]
    spoken = [f"{guess.answer}, {guess.confidence:.0%} sure" for guess in guesses]
    if not answer.declined and answer.answer not in _NO_ANSWER:
        return "; or ".join(spoken)
    refusal = "The photo probably cannot answer this."
    return f"{refusal} Best guess: {'; or '.join(spoken)}" if spoken else refusal


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _photos_and_questions(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Tell the photos from the question, which comes last where there is no ``-q``."""
    if arguments.questions:
        return arguments.photos, arguments.questions
    *photos, question = arguments.photos
    if not photos:
        raise QuestionError(f"got {question!r} alone, expected at least one photo and then a question; see ask --help")
    if os.path.isfile(question):  # noqa: PTH113 - Path.is_file raises on a question longer than a file name can be
        raise QuestionError(f"the last argument, {question!r}, is a file, expected a question; see ask --help")
    return photos, [question]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if any(argument.startswith("-") for argument in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.photos += rest  # argparse stops reading photos at the first option after them
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vizwiz-client",
        description="Ask a Triton server about photos. Start with: vizwiz-client ask --help",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    ask = commands.add_parser(
        "ask",
        help="ask questions about photos",
        description=_ASK_HELP,
        epilog=_OUTPUT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s PHOTO [PHOTO ...] QUESTION [options]\n       %(prog)s PHOTO [PHOTO ...] -q QUESTION [options]",
    )
    ask.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help="a JPEG, PNG, WEBP, GIF or BMP file; the last argument is the question, unless there is -q",
    )
    ask.add_argument(
        "-q", "--question", dest="questions", action="append", metavar="QUESTION", help="a question; can be repeated"
    )
    ask.add_argument("--top", type=_at_least_one, default=1, metavar="K", help="how many candidate answers to give")
    ask.add_argument("--json", action="store_true", help="one JSON object a line, for machines")
    ask.add_argument("--url", default=DEFAULT_URL, help="the server's gRPC address (default: %(default)s)")
    ask.add_argument(
        "--timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help="how long to wait for each answer (default: %(default)g)",
    )
    return parser


def _at_least_one(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, 1 or more")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of seconds over 0")
    return seconds
