"""The command ``vizwiz-client``.

Modules are imported when they are needed: ``--help`` imports argparse, but not NumPy, Pillow or gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence

from vizwiz_client.cli import _output
from vizwiz_client.cli._parser import parse
from vizwiz_client.contract.errors import VizwizError
from vizwiz_client.contract.streams import OUTPUT_LOST


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: arguments without the program's name; None for those of this process.

    Returns:
        The exit code, one of ``_output.EXIT_CODES``.
    """
    _output.prepare_streams()
    try:
        arguments = parse(argv)
        if arguments.command == "batch":
            from vizwiz_client.cli._batch import batch

            return batch(arguments)
        from vizwiz_client.cli import _commands

        return _commands.ask(arguments) if arguments.command == "ask" else _commands.status(arguments)
    except (VizwizError, _output.UsageError, _output.OutputError) as error:
        if text := str(error):
            _output.print_error(f"Error: {text}")
        return _output.exit_code(error)
    except KeyboardInterrupt:
        return _output.INTERRUPTED
    except OSError as error:  # an input file became unreadable; photos and servers have errors of their own
        _output.print_error(f"Error: {error}")
        return OUTPUT_LOST
