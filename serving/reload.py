"""``python -m serving reload``: let a running server answer with what its repository names now, or another head."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving.admin import KEY_VARIABLE, RunningServer, find_servers
from serving.errors import ServingError
from serving.repository import DEFAULT_REPOSITORY
from serving.swap import Swap, swap
from vizwiz_client.contract.tensors import HEAD_PREFIX

_HELP = f"""\
Bring a newly exported head (and encoders, where they are new) into a running server, with no failed request: load it
beside the old one, ask it the golden request that travels with it, let each ensemble name it, unload the old one. A
head that is damaged or answers wrongly is refused before any ensemble is touched, and the old one goes on answering.

The embedded server of this machine is found by itself; of several, the one that serves ./{DEFAULT_REPOSITORY}. For
another Triton, give its address, the repository as this machine sees it, and, where its model control asks for one, the
key in the environment variable {KEY_VARIABLE}.
"""

_EXAMPLES = """\
examples:
  python -m serving reload                            what the last export published
  python -m serving reload --to 3f2a                  the head whose digest begins so, and keep it (--list of
                                                      python -m export.to_onnx says which there are)
  python -m serving reload --url triton:8001 --repository /srv/models

exit status: 0 the server answers with it, 1 refused: the server answers as before, 2 wrong arguments,
130 stopped by Ctrl-C or SIGTERM: rolled back, or, where the new head answered already, older models stay loaded
"""


def reload(
    url: str | None = None,
    repository: Path | None = None,
    *,
    to: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Swap:
    """Bring what a repository names into the server at ``url``: :func:`serving.swap.swap`, with all that can be found.

    Args:
        url: gRPC address, host:port; None finds the embedded server of this machine.
        repository: what it serves; None asks the embedded server.

    Raises:
        ServingError: the swap was refused, or the server cannot be found.
    """
    server = _find(url, repository)
    if server is None and (url is None or repository is None):
        raise ServingError(_candidates(url))
    key = server.key if server else os.environ.get(KEY_VARIABLE)  # a server that was found has said what its key is
    folder = repository or Path(server.repository if server else "")
    return swap(folder, url or (server.grpc if server else ""), key, to=to, report=report)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with _interruptible():
            done = reload(arguments.url, arguments.repository, to=arguments.to, report=_say)
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except (ServingError, OSError) as error:
        _say(f"error: {error}")
        return 1
    print(describe(done))
    return 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM raise KeyboardInterrupt, and ignore others: the swap is being rolled back."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        _say("interrupted: rolling back")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(done: Swap) -> str:
    """What the swap did, in a line."""
    changes = [f"{verb} {', '.join(names)}" for verb, names in (("loaded", done.loaded), ("unloaded", done.unloaded))]
    happened = "; ".join(change for change in changes if not change.endswith(" ")) or "nothing was new"
    return f"{' and '.join(done.ensembles)} answer with {', '.join(done.heads)}, after {done.seconds:.1f} s: {happened}"


def _find(url: str | None, repository: Path | None) -> RunningServer | None:
    """The embedded server that is meant, if that is clear."""
    fitting = [
        server
        for server in find_servers()
        if (url is None or _loopback(url) == server.grpc)
        and (repository is None or Path(server.repository) == repository.resolve())
    ]
    here = [server for server in fitting if Path(server.repository) == DEFAULT_REPOSITORY.resolve()]
    found = fitting if len(fitting) == 1 else here
    return found[0] if len(found) == 1 else None


def _loopback(url: str) -> str:
    return url.replace("localhost:", "127.0.0.1:")


def _candidates(url: str | None) -> str:
    another = "for another Triton, give its gRPC address with --url and the repository that it serves with --repository"
    servers = ", ".join(f"{server.grpc} (serves {server.repository})" for server in find_servers())
    if not servers:
        return f"no embedded server is here: start `python -m serving`, or, {another}"
    if url:
        return f"{url} is not the gRPC address of an embedded server here, which are {servers}; {another}"
    return f"which embedded server is meant is not clear: {servers}; give the address with --url"


def _say(line: str) -> None:
    print(f"reload: {line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving reload",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--url", metavar="HOST:PORT", help="the server's gRPC address (default: the one on this machine)"
    )
    parser.add_argument(
        "--repository", type=Path, metavar="FOLDER", help="the repository that it serves (default: as it says)"
    )
    parser.add_argument(
        "--to",
        metavar="DIGEST",
        type=_digest,
        help="first let the repository's ensembles name this head, which is in it still: going back, or forth",
    )
    return parser


def _digest(text: str) -> str:
    digits = text.removeprefix(HEAD_PREFIX)
    if not digits or set(digits) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected the hex digits of a head's name, or the first of them"
        )
    return digits
