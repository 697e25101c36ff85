"""``vizwiz-client status``."""

from __future__ import annotations

import argparse

from vizwiz_client import Check, Status
from vizwiz_client.cli import _exits
from vizwiz_client.cli._connect import connect
from vizwiz_client.cli._streams import put
from vizwiz_client.cli._text import json_line
from vizwiz_client.contract.errors import escape_controls


def run(arguments: argparse.Namespace) -> int:
    """Print what is right and what is not, and return the exit code."""
    with connect(arguments) as client:
        status = client.status(max_latency_s=arguments.max_latency)
    if arguments.json:
        put(json_line(status.to_dict()))
    else:
        for check in status.checks:
            if not (check.ok and arguments.quiet):
                put(escape_controls(_line(check)))
    return _code(status)


def _line(check: Check) -> str:
    verdict = {True: "right, ", False: "wrong, ", None: ""}[check.ok]
    return f"{check.name}: {verdict}{check.text}"


def _code(status: Status) -> int:
    error = next((check.error for check in status.checks if check.error), None)
    if error is not None:
        return _exits.code(error)
    return _exits.OK if status.ok else _exits.SOME_FAILED
