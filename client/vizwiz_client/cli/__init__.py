"""The command ``vizwiz-client``: a thin skin over the library, and the one place that turns errors into exit codes.

Nothing is imported before it is needed: ``--help`` loads argparse alone, not NumPy, Pillow or gRPC.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from vizwiz_client.cli import _exits
from vizwiz_client.cli._arguments import parse
from vizwiz_client.contract.errors import VizwizError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code, one of ``_exits``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal cannot show is shown as \\u2026, not a traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = parse(argv)
        run = import_module(f"vizwiz_client.cli._{arguments.command}").run
        return int(run(arguments))
    except (VizwizError, _exits.UsageError) as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return _exits.code(error)
    except KeyboardInterrupt:
        return _exits.INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush would fail again
        return _exits.OK
    except OSError as error:  # a full disk, say; what is wrong with a photo or with the server came as another error
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return _exits.NOT_WRITTEN
