"""``python -m serving``: serve the model repository on this machine's loopback; ``reload`` changes what it serves."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from serving import reload
from serving.admin import KEY_VARIABLE
from serving.errors import ServingError
from serving.ports import EXPOSE_FLAG, KNOWN_HOLES, LOOPBACK, check_host
from serving.repository import DEFAULT_REPOSITORY
from serving.server import EmbeddedTriton
from vizwiz_client.contract import streams
from vizwiz_client.contract.tensors import ENSEMBLE

GRPC_PORT = 8001  # the client's default, and Triton's

_HELP = f"""\
Serve a model repository with the Triton that nvidia-pytriton carries, on loopback only (127.0.0.1), until Ctrl-C or
SIGTERM. Needs Linux on x86-64 and no GPU. For a network or a GPU cluster, give the same repository to NVIDIA's Triton
container.

`python -m serving reload` lets the running server answer with what the repository names now, or with an earlier head:
see its --help.

Anybody on this machine may ask questions; model control, shared memory, tracing and logging take a key. Each start
makes one, which `reload` finds, unless the environment variable {KEY_VARIABLE} gives one.
"""

_EXAMPLES = """\
examples:
  python -m serving                                          serve triton_models/ at the usual ports
  python -m serving --repository /srv/models --threads 4     another repository, 4 threads a model
  python -m serving reload                                   after another export: swap, with no failed request
  python -m serving --http-port 0 --grpc-port 0 --metrics-port 0 --json
                                                             any free ports, told as one line of JSON

exit status: 0 stopped by Ctrl-C or SIGTERM, 1 the server could not start or ended by itself, 2 wrong arguments
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["reload"]:
        return reload.main(argv[1:])
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background job starts with it ignored
        signal.signal(number, signal.default_int_handler)
    server = EmbeddedTriton(
        arguments.repository,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        host=arguments.host,
        expose=arguments.expose,
        threads=arguments.threads,
        verbose=arguments.log_verbose,
    )
    try:
        check_host(arguments.host, arguments.expose)
        if arguments.expose:
            _say(f"warning: {EXPOSE_FLAG} lets other machines reach this server, and {KNOWN_HOLES}")
        _serve(server, arguments.json)
    except KeyboardInterrupt:
        _say("stopped")
        return 0
    except (ServingError, OSError) as error:
        _say(f"error: {error}")
        return 1


def _serve(server: EmbeddedTriton, as_json: bool) -> NoReturn:
    _say(f"starting Triton on {server.repository}: waiting for the models to load")
    start = time.monotonic()
    server.start(report=_say)
    try:
        seconds = time.monotonic() - start
        print(_addresses_json(server) if as_json else _addresses(server, seconds), flush=True)
        server.wait(_say)
    finally:
        server.stop()


def _addresses(server: EmbeddedTriton, seconds: float) -> str:
    url = "" if server.grpc_url.endswith(f":{GRPC_PORT}") else f" --url {server.grpc_url}"
    return f"""\
{ENSEMBLE} is ready, after {seconds:.1f} s:
  gRPC     {server.grpc_url}
  HTTP     http://{server.http_url}/v2/models/{ENSEMBLE}
  metrics  {server.metrics_url}
  log      {server.log}
Ask it, in another terminal:
  vizwiz-client ask img.jpg "what is this?"{url}
Ctrl-C stops it."""


def _addresses_json(server: EmbeddedTriton) -> str:
    return json.dumps(
        {"grpc": server.grpc_url, "http": server.http_url, "metrics": server.metrics_url, "log": str(server.log)}
    )


def _say(line: str) -> None:
    print(f"serving: {line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=DEFAULT_REPOSITORY,
        metavar="FOLDER",
        help="the model repository that `python -m export.to_onnx` wrote (default: %(default)s)",
    )
    for name, port, what in (
        ("http", 8000, "HTTP/REST"),
        ("grpc", GRPC_PORT, "gRPC, which vizwiz-client uses"),
        ("metrics", 8002, "metrics in Prometheus's format"),
    ):
        text = f"port for {what}; 0 takes any free one (default: %(default)s)"
        parser.add_argument(f"--{name}-port", type=_port, default=port, metavar="PORT", help=text)
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default=LOOPBACK,
        help="IPv4 address for HTTP and gRPC (default: %(default)s); one that other machines reach is refused without "
        f"{EXPOSE_FLAG}. Metrics stay on loopback",
    )
    parser.add_argument(
        EXPOSE_FLAG,
        dest="expose",
        action="store_true",
        help=f"let other machines reach the server, although {KNOWN_HOLES}",
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        metavar="N",
        help="threads that each model computes with (default: one for each core)",
    )
    parser.add_argument(
        "--log-verbose", action="store_true", help="let Triton log every step of every request to its log file"
    )
    parser.add_argument("--json", action="store_true", help="when ready, print the addresses as one line of JSON")
    return parser


def _port(text: str) -> int:
    return _whole_number(text, 0, 65535)


def _threads(text: str) -> int:
    return _whole_number(text, 1, 1024)


def _whole_number(text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {low} to {high}")
    return int(text)


if __name__ == "__main__":
    sys.exit(streams.run(main))
