"""The command ``vizwiz-client``: a thin skin over the library, and the one place that turns errors into exit codes.

Nothing is imported before it is needed: ``--help`` loads argparse alone, not NumPy, Pillow or gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from vizwiz_client.cli import _exits
from vizwiz_client.cli._arguments import parse
from vizwiz_client.cli._streams import prepare_streams, say
from vizwiz_client.contract.errors import VizwizError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code, one of ``_exits``."""
    prepare_streams()
    try:
        arguments = parse(argv)
        run = import_module(f"vizwiz_client.cli._{arguments.command}").run
        return int(run(arguments))
    except (VizwizError, _exits.UsageError, _exits.NotWritten) as error:
        if text := str(error):
            say(f"Error: {text}")
        return _exits.code(error)
    except KeyboardInterrupt:
        return _exits.INTERRUPTED
    except OSError as error:  # a file that cannot be read any more; photos and servers have errors of their own
        say(f"Error: {error}")
        return _exits.NOT_WRITTEN
