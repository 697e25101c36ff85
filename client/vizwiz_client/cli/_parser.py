"""The command line: commands, options, environment variables, and their help."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from vizwiz_client import __version__
from vizwiz_client._settings import (
    DEFAULT_MAX_LATENCY_S,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    MAX_TIMEOUT_S,
)
from vizwiz_client.cli import _output

COMMANDS = {
    "ask": "ask questions about photos",
    "batch": "ask the questions of a CSV or JSON Lines file",
    "status": "check server, models, contract and latency",
}

USAGE = {
    "ask": """\
vizwiz-client ask PHOTO [PHOTO ...] QUESTION [options]
       vizwiz-client ask PHOTO [PHOTO ...] -q QUESTION [-q QUESTION ...] [options]""",
    "batch": "vizwiz-client batch INPUT [-o FILE] [options]",
    "status": "vizwiz-client status [options]",
}

DESCRIPTION = {
    "ask": """\
Ask one question about a photo, or several questions about several photos.

The last argument is the question, those before it are photos. With -q, every argument is a photo, and every question
is asked about every photo. A photo - is read from standard input. A question has at most 5,000 characters, of which
the model reads about 50 words.

examples:
  vizwiz-client ask img.jpg "what is this?"
  vizwiz-client ask front.jpg back.jpg "when does this expire?"
  vizwiz-client ask *.jpg -q "what is this?" -q "what colour is it?"
  vizwiz-client ask img.jpg "what is this?" --top 3
  vizwiz-client ask img.jpg "what is this?" --quality
  vizwiz-client ask - "what is this?" < img.jpg
  vizwiz-client ask img.jpg -q="- or +?"
  vizwiz-client ask *.jpg "what is this?" --json > answers.jsonl
""",
    "batch": """\
Ask the questions of a file: CSV with a header, or JSON Lines (one object a line).

The column (or key) `photo`, or `image`, is the path of a photo, relative to the file or to --photos. `question` is the
question. All other columns are copied. With -o, answers are appended to FILE.part; after a crash, the same command
resumes there. FILE appears when it is complete. To resume a pipe, send the same rows again.

examples:
  vizwiz-client batch questions.csv -o answers.csv
  vizwiz-client batch questions.jsonl --photos VizWiz/val -o answers.jsonl
  vizwiz-client batch - --photos . < questions.csv > answers.csv
""",
    "status": """\
Check server, models, contract and latency by asking about a built-in photo; say what to do about each failed check.

examples:
  vizwiz-client status
  vizwiz-client status --url gpu.example.org:8001 --max-latency 0.2
  vizwiz-client status --json
""",
}

OUTPUT = {
    "ask": """\
output:
  One line per photo and question, in that order, as soon as it is known:
    Banana. Very sure, 92%.
    Maybe banana, or lemon. Not sure, 31%.
    The photo cannot answer this. The photo is too dark. Turn on a light. Then take another photo.
  With --quality, each line ends with advice and the probability of each problem of the photo:
    Banana. Very sure, 92%. The photo is too dark. Turn on a light. Photo: too dark, 94%; blurred, 20%.
  With several photos or questions, each line starts with their names. Errors and notes go to standard error.

  With --json, one JSON object a line: photo, question, answer, confidence, declined, answerable, answer_type,
  candidates, runner_up, quality, advice, sentence, question_truncated, demo, head_id, request_id, timings; for a
  refused photo or question: photo, question, error.
""",
    "batch": """\
output:
  The input's columns, then answer, confidence, declined, answerable, answer_type, candidates, quality, advice,
  sentence, question_truncated, demo, head_id, request_id, error; in the format of the input, or JSON Lines with
  --json or if FILE ends in .jsonl. In CSV, candidates, quality and advice are JSON, and empty where there are none.
  A refused photo or question has its error, and no answer. A server error ends the batch, so that it can be resumed;
  with --keep-going it is written as the row's error.
""",
    "status": """\
output:
  One line per check, such as "server: ok, ..." or "server: failed, ...". With --json, one object.
""",
}


class Option(NamedTuple):
    """An option of the server group; its environment variable is VIZWIZ_<NAME>."""

    flag: str
    metavar: str
    help: str
    read: Callable[[str], Any] = str
    default: Any = None

    @property
    def variable(self) -> str:
        """The environment variable; the option has precedence."""
        return "VIZWIZ_" + self.flag[2:].upper().replace("-", "_")


def at_least(minimum: int) -> Callable[[str], int]:
    """Reader of integers of at least ``minimum``, for argparse."""

    def read(text: str) -> int:
        number = int(text) if text.isdecimal() and len(text) <= 9 else minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {minimum} to 999,999,999")
        return number

    return read


def seconds(text: str) -> float:
    """Read a number of seconds over 0, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a number of seconds over 0, below {MAX_TIMEOUT_S:,.0f}"
        )
    return number


def header(text: str) -> tuple[str, str]:
    """Read "NAME:VALUE", for argparse. The error does not repeat the text, which may be a secret."""
    name, colon, value = text.partition(":")
    if not (colon and name.strip()):
        raise argparse.ArgumentTypeError("expected NAME:VALUE, such as 'authorization:Bearer ...'")
    return name.strip().lower(), value.strip()


OPTIONS = (
    Option("--url", "HOST:PORT", "Triton's gRPC address", default=DEFAULT_URL),
    Option("--timeout", "SECONDS", "deadline of each request, retries included", seconds, DEFAULT_TIMEOUT_S),
    Option("--retries", "N", "retries if the server is unavailable", at_least(0), DEFAULT_RETRIES),
    Option("--tls-ca", "FILE", "use TLS; certificates (PEM) of the authorities to trust"),
    Option("--tls-cert", "FILE", "use TLS; this client's certificate (PEM)"),
    Option("--tls-key", "FILE", "the private key (PEM) of --tls-cert"),
)
HEADERS_VARIABLE = "VIZWIZ_HEADERS"  # one header a line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if self.prog.endswith(" ask") and ("unrecognized" in message or "--question" in message):
            message += "; a question that starts with - is written -q=-..."
        for option in OPTIONS:
            if message.startswith(f"argument {option.flag}:") and os.environ.get(option.variable):
                message += f" (the environment variable {option.variable} is set)"
        _output.print_error(f"Error: {message}")
        _output.print_error(f"More: {self.prog} --help")
        sys.exit(_output.USAGE)

    def _print_message(self, message: str, file: Any = None) -> None:
        _output.print_line(message.rstrip("\n"))  # help and version; argparse's own ignores a full disk


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse arguments (None: the process's own) and environment; exit with 2 if they are invalid."""
    arguments, rest = build_parser().parse_known_args(argv)
    # options may stand between photos and question: argparse leaves the operands after them in `rest`
    is_operands = arguments.command == "ask" and not any(word.startswith("-") and word != "-" for word in rest)
    if rest and not is_operands:
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.operands += rest
    if arguments.header is None:
        lines = os.environ.get(HEADERS_VARIABLE, "").splitlines()
        try:
            arguments.header = [header(line) for line in lines if line.strip()]
        except argparse.ArgumentTypeError as error:
            arguments.parser.error(f"environment variable {HEADERS_VARIABLE}: {error}")
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="vizwiz-client",
        description="Ask a Triton server about photos. Start with: vizwiz-client ask --help",
        epilog=_exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            usage=USAGE[name],
            description=DESCRIPTION[name],
            epilog=f"{OUTPUT[name]}\n{_exit_codes()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(parser=command)
        _ADD_ARGUMENTS[name](command)
        _add_common(command)
    return parser


def _add_ask(parser: argparse.ArgumentParser) -> None:
    photo_help = "a photo's file, - for standard input; without -q, the last one is the question"
    parser.add_argument("operands", nargs="*", metavar="PHOTO", help=photo_help)
    parser.add_argument(
        "-q", "--question", dest="questions", action="append", metavar="QUESTION", help="a question; repeatable"
    )
    parser.add_argument(
        "--quality", action="store_true", help="print what is wrong with the photo also where the question is answered"
    )
    _add_asking(parser)


def _add_batch(parser: argparse.ArgumentParser) -> None:
    input_help = "a CSV or JSON Lines file, - for standard input"
    parser.add_argument("input", metavar="INPUT", help=input_help)
    parser.add_argument("-o", "--output", metavar="FILE", help="the answers (default: standard output)")
    parser.add_argument("--photos", metavar="FOLDER", help="the photos (default: the folder of INPUT)")
    parser.add_argument("--keep-going", action="store_true", help="write server errors into their rows, and go on")
    _add_asking(parser)


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-latency",
        type=seconds,
        default=DEFAULT_MAX_LATENCY_S,
        metavar="SECONDS",
        help="largest latency that passes (default: %(default)g)",
    )


_ADD_ARGUMENTS = {"ask": _add_ask, "batch": _add_batch, "status": _add_status}


def _add_asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--top", type=at_least(1), default=1, metavar="K", help="number of candidate answers")
    parser.add_argument(
        "--fast-decode", action="store_true", help="shrink large JPEGs while decoding: faster, slightly other pixels"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="print no notes and no progress, only errors")
    server = parser.add_argument_group("the server", "Options have precedence over environment variables.")
    for option in OPTIONS:
        default = "" if option.default is None else f"; default: {str(option.default).removesuffix('.0')}"
        server.add_argument(
            option.flag,
            metavar=option.metavar,
            type=option.read,
            default=os.environ.get(option.variable) or option.default,  # argparse applies `type` to a string
            help=f"{option.help} (or {option.variable}{default})",
        )
    server.add_argument(
        "--header",
        action="append",
        type=header,
        metavar="NAME:VALUE",
        help=f"send this header; repeatable (or {HEADERS_VARIABLE}, one a line: the place for secrets)",
    )


def _exit_codes() -> str:
    lines = [
        textwrap.fill(text, 116, initial_indent=f"  {code:<5}", subsequent_indent=" " * 7)
        for code, text in _output.EXIT_CODES.items()
    ]
    return "\n".join(["exit status:", *lines])
