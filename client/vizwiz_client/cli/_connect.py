"""The client that the options describe."""

from __future__ import annotations

import argparse

from vizwiz_client import Tls, VizwizClient, VizwizError
from vizwiz_client.cli._exits import UsageError


def connect(arguments: argparse.Namespace) -> VizwizClient:
    """Make the client; nothing is sent yet. Raises UsageError where an option cannot be used."""
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
