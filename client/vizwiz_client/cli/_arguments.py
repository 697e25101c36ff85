"""The command line: every command, option and environment variable, and their help."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from vizwiz_client import __version__
from vizwiz_client._status import DEFAULT_MAX_LATENCY_S
from vizwiz_client.cli import _exits, _help
from vizwiz_client.cli._settings import HEADERS, SETTINGS, at_least, header, seconds
from vizwiz_client.cli._streams import put, say

COMMANDS = {
    "ask": "ask questions about photos",
    "batch": "ask the questions of a CSV or JSON Lines file",
    "status": "say whether the server is all right, and what to do if not",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if self.prog.endswith(" ask") and ("unrecognized" in message or "--question" in message):
            message += "; a question that starts with - is written -q=-... or comes after --"
        say(f"Error: {message}")
        say(f"More: {self.prog} --help")
        sys.exit(_exits.USAGE)

    def _print_message(self, message: str, file: Any = None) -> None:
        put(message.rstrip("\n"))  # help and version; argparse's own ignores that they cannot be written


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (default: the process's own), and the environment; exit with 2 where they are wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    literal = words.index("--") + 1 if "--" in words else len(words) + 1  # argparse's own reading of -- varies
    parser = full_parser()
    arguments, rest = parser.parse_known_args(words[: literal - 1])
    command: argparse.ArgumentParser = arguments.parser
    operands = rest + words[literal:]  # argparse stops reading operands at the first option after them
    unknown = [word for word in rest if word.startswith("-") and word != "-"]
    if unknown or (operands and not hasattr(arguments, "operands")):
        command.error(f"unrecognized arguments: {' '.join(unknown or operands)}")
    if hasattr(arguments, "operands"):
        arguments.operands += operands
    _apply_environment(command, arguments)
    return arguments


def _apply_environment(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    for setting in (*SETTINGS, HEADERS):
        if getattr(arguments, setting.name) is None:
            text = os.environ.get(setting.variable)
            try:
                value = setting.read(text) if text else setting.default
            except argparse.ArgumentTypeError as error:
                parser.error(f"environment variable {setting.variable}: {error}")
            setattr(arguments, setting.name, value)


def full_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(
        prog="vizwiz-client",
        description=_help.TOP,
        epilog=_help.exits(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print a script of completions for this shell; needs the extra vizwiz-client[completion]",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            usage=_help.USAGE[name],
            description=_help.DESCRIPTION[name],
            epilog=f"{_help.OUTPUT[name]}\n{_help.environment()}\n\n{_help.exits()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(parser=command)
        _ARGUMENTS[name](command)
        _add_shared(command)
    return parser


def _add_ask(parser: argparse.ArgumentParser) -> None:
    _file(parser.add_argument("operands", nargs="*", metavar="PHOTO", help=_help.PHOTO))
    parser.add_argument(
        "-q", "--question", dest="questions", action="append", metavar="QUESTION", help="a question; can be repeated"
    )
    _add_asking(parser)


def _add_batch(parser: argparse.ArgumentParser) -> None:
    _file(
        parser.add_argument(
            "operands", nargs="*", metavar="INPUT", help="a CSV or JSON Lines file, - for standard input"
        )
    )
    _file(parser.add_argument("-o", "--output", metavar="FILE", help="where answers go (default: standard output)"))
    _file(parser.add_argument("--photos", metavar="FOLDER", help="where the photos are (default: the folder of INPUT)"))
    parser.add_argument("--keep-going", action="store_true", help="write down a server's errors too, and go on")
    _add_asking(parser)


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-latency",
        type=seconds,
        default=DEFAULT_MAX_LATENCY_S,
        metavar="SECONDS",
        help="an answer that takes longer is slow (default: %(default)g)",
    )


def _add_asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--top", type=at_least(1), default=1, metavar="K", help="how many candidate answers to give")
    parser.add_argument(
        "--fast-decode", action="store_true", help="decode large JPEGs shrunk: faster, not the same pixels"
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write JSON, for machines")
    parser.add_argument("--quiet", action="store_true", help="leave out notes and progress; errors are still said")
    server = parser.add_argument_group("the server")
    for setting in SETTINGS:
        default = "" if setting.default is None else f" (default: {str(setting.default).removesuffix('.0')})"
        reads: dict[str, Any] = {} if setting.read is str else {"type": setting.read}
        option = server.add_argument(setting.flag, metavar=setting.metavar, help=setting.help + default, **reads)
        if setting.metavar == "FILE":
            _file(option)
    server.add_argument(HEADERS.flag, action="append", type=header, metavar=HEADERS.metavar, help=HEADERS.help)


def _file(action: argparse.Action) -> None:
    """Let the shells complete paths: what ``shtab.FILE`` is, without the import."""
    action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]


_ARGUMENTS = {"ask": _add_ask, "batch": _add_batch, "status": _add_status}


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: Any, __: str | None = None) -> NoReturn:
        try:
            import shtab  # here alone: nobody else waits for it
        except ModuleNotFoundError:
            parser.error("completions are made by shtab; install it: pip install 'vizwiz-client[completion]'")
        put(shtab.complete(parser, shell=shell))
        parser.exit(0)
