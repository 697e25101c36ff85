"""``python -m serving``: serve a model repository, and the gateway, on loopback.

``python -m serving reload``: roll a new head out.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from serving import ServingError
from serving.access import EXPOSE_FLAG, KEY_VARIABLE, KNOWN_HOLES, LOOPBACK, check_host, claim_ports
from serving.gateway import PORT, Gateway, missing_packages
from serving.repository import DEFAULT_REPOSITORY, check_repository
from serving.rollout import rollout
from serving.server import EmbeddedTriton
from vizwiz_client.contract import streams
from vizwiz_client.contract.tensors import ENSEMBLE, HEAD_PREFIX

GRPC_PORT = 8001  # the client's default, and Triton's

_SERVE_HELP = f"""\
Serve a model repository with the Triton of nvidia-pytriton, on loopback only (127.0.0.1), until Ctrl-C or SIGTERM.
Needs Linux on x86-64 and no GPU. For a network or a GPU cluster, serve the same repository with NVIDIA's Triton
container.

In front of Triton it starts the gateway, a process of its own: a web page and a REST endpoint, also on loopback.

`python -m serving reload` switches the running server to what the repository references now, or to an earlier head: see
its --help.

Any user of this machine may send questions; model control, shared memory, tracing and logging need an admin key. Each
start generates one, which `reload` reads, unless the environment variable {KEY_VARIABLE} holds one.
"""
_SERVE_EXAMPLES = """\
examples:
  python -m serving                                          serve triton_models/ and the page at the default ports
  python -m serving --repository /srv/models --threads 4     another repository, 4 threads per model
  python -m serving reload                                   after another export: roll it out, with no failed request
  python -m serving --gateway-port 0 --http-port 0 --grpc-port 0 --metrics-port 0 --json
                                                             any free ports, printed as one line of JSON

exit status: 0 stopped by Ctrl-C or SIGTERM, 1 the server could not start, or died and could not be restarted,
2 wrong arguments
"""
_RELOAD_HELP = f"""\
Roll a newly exported head (and new encoders) out to a running server, with no failed request: load it beside the old
one, send it its golden request, reload the ensemble, unload the old one. A head that is damaged or answers wrongly is
refused before the ensemble is changed; the old one goes on answering.

Without --url, the server is the one that you run on this machine with `python -m serving`; of several, the one that
serves ./{DEFAULT_REPOSITORY}. For another Triton, give its address, the repository as this machine sees it, and, if it
needs one, the admin key in the environment variable {KEY_VARIABLE}.
"""
_RELOAD_EXAMPLES = """\
examples:
  python -m serving reload                            what the last export published
  python -m serving reload --to 3f2a                  the head whose digest begins with 3f2a, from now on (--list of
                                                      python -m export.to_onnx shows them)
  python -m serving reload --url triton:8001 --repository /srv/models

exit status: 0 the server serves it, 1 refused: the server serves as before, 2 wrong arguments,
130 stopped by Ctrl-C or SIGTERM: rolled back, or, if the new head answered already, older models remain loaded
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the arguments ``argv`` (default: those of the process); return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["reload"]:
        return _reload(_reload_parser().parse_args(argv[1:]))
    return _serve(_serve_parser().parse_args(argv))


def _serve(arguments: argparse.Namespace) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background job starts with it ignored
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # the terminal closes; nohup ignores it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
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
    gateway = None
    try:
        check_repository(arguments.repository)
        check_host(arguments.host, arguments.expose)
        with_gateway = arguments.gateway and _has_gateway()
        port = _claim_all_ports(arguments)["--gateway-port"] if with_gateway else 0
        if arguments.expose:
            _report(f"warning: {EXPOSE_FLAG} lets other machines reach this server, and {KNOWN_HOLES}")
        _report(f"starting Triton on {server.repository}: waiting for the models to load")
        start = time.monotonic()
        server.start(_report)
        try:
            if with_gateway:
                gateway = Gateway(server.grpc_url, port, _report)
                gateway.start()
            page, seconds = gateway.url if gateway else None, time.monotonic() - start
            print(_addresses_json(server, page) if arguments.json else _addresses(server, page, seconds), flush=True)
            server.wait()
        finally:
            try:
                if gateway:
                    gateway.stop()
            finally:
                server.stop()
    except KeyboardInterrupt:
        _report("stopped")
        return 0
    except (ServingError, OSError) as error:
        _report(f"error: {error}")
        return 1


def _reload(arguments: argparse.Namespace) -> int:
    try:
        with _interrupted_once():
            done = rollout(arguments.url, arguments.repository, to=arguments.to, report=_report)
    except KeyboardInterrupt:
        _report("stopped")
        return 130
    except (ServingError, OSError) as error:
        _report(f"error: {error}")
        return 1
    print(done)
    return 0


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first signal to end; ignore others, which would interrupt the rollback."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # else it is ignored, as under nohup
        numbers.append(signal.SIGHUP)

    def interrupt(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        _report("interrupted: rolling back")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _claim_all_ports(arguments: argparse.Namespace) -> dict[str, int]:
    """Check the ports of Triton and of the gateway before the models load; Triton's are claimed again by its start."""
    hosts = {"http": arguments.host, "grpc": arguments.host, "metrics": LOOPBACK, "gateway": LOOPBACK}
    wanted = {f"--{name}-port": getattr(arguments, f"{name}_port") for name in hosts}
    return claim_ports(wanted, {f"--{name}-port": host for name, host in hosts.items()})


def _has_gateway() -> bool:
    if missing := missing_packages():
        _report(
            f"no gateway: it needs {', '.join(missing)}; for the web page, pip install '.[gateway]' in the checkout"
        )
    return not missing


def _addresses(server: EmbeddedTriton, page: str | None, seconds: float) -> str:
    url = "" if server.grpc_url == f"{LOOPBACK}:{GRPC_PORT}" else f" --url {server.grpc_url}"
    page = page and page.replace(LOOPBACK, "localhost")
    first = f"Open {page} to ask about a photo.\n\n" if page else ""
    curl = f'\n  curl -F photo=@img.jpg -F question="what is this?" {page}/v1/ask' if page else ""
    return f"""\
{first}{ENSEMBLE} is ready, after {seconds:.1f} s:
  gRPC     {server.grpc_url}
  HTTP     http://{server.http_url}/v2/models/{ENSEMBLE}
  metrics  {server.metrics_url}
  log      {server.log}
Ask it, in another terminal:{curl}
  vizwiz-client ask img.jpg "what is this?"{url}
Ctrl-C stops it."""


def _addresses_json(server: EmbeddedTriton, page: str | None) -> str:
    triton = {"grpc": server.grpc_url, "http": server.http_url, "metrics": server.metrics_url, "log": str(server.log)}
    return json.dumps({"gateway": page, **triton})


def _report(line: str) -> None:
    with suppress(OSError):  # a full disk, or a closed pipe: a message that is lost must not end the server
        print(f"serving: {line}", file=sys.stderr, flush=True)


def _serve_parser() -> argparse.ArgumentParser:
    parser = _parser("python -m serving", _SERVE_HELP, _SERVE_EXAMPLES)
    parser.add_argument(
        "--repository",
        type=Path,
        default=DEFAULT_REPOSITORY,
        metavar="FOLDER",
        help="model repository that `python -m export.to_onnx` wrote (default: %(default)s)",
    )
    parser.add_argument(
        "--gateway",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="start the gateway: the web page and the REST endpoint (the default)",
    )
    for name, port, service in (
        ("gateway", PORT, "the web page and the REST endpoint, always on loopback"),
        ("http", 8000, "HTTP/REST"),
        ("grpc", GRPC_PORT, "gRPC, which vizwiz-client uses"),
        ("metrics", 8002, "Prometheus metrics"),
    ):
        text = f"port for {service}; 0 takes any free one (default: %(default)s)"
        parser.add_argument(f"--{name}-port", type=_port, default=port, metavar="PORT", help=text)
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default=LOOPBACK,
        help="IPv4 address for HTTP and gRPC (default: %(default)s); one that other machines can reach needs "
        f"{EXPOSE_FLAG}. Metrics stay on loopback",
    )
    parser.add_argument(
        EXPOSE_FLAG,
        dest="expose",
        action="store_true",
        help=f"let other machines reach the server, although {KNOWN_HOLES}",
    )
    parser.add_argument(
        "--threads", type=_threads, metavar="N", help="compute threads per model (default: one per core)"
    )
    parser.add_argument("--log-verbose", action="store_true", help="let Triton log every step of every request")
    parser.add_argument("--json", action="store_true", help="when ready, print the addresses as one line of JSON")
    return parser


def _reload_parser() -> argparse.ArgumentParser:
    parser = _parser("python -m serving reload", _RELOAD_HELP, _RELOAD_EXAMPLES)
    parser.add_argument(
        "--url", metavar="HOST:PORT", help="gRPC address of the server (default: the one that you run on this machine)"
    )
    parser.add_argument(
        "--repository", type=Path, metavar="FOLDER", help="repository that it serves (default: as the server says)"
    )
    parser.add_argument(
        "--to",
        metavar="DIGEST",
        type=_digest,
        help="first let the ensemble of the repository reference this head of the repository: to go back, or forward",
    )
    return parser


def _parser(program: str, description: str, epilog: str) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=program, description=description, epilog=epilog, formatter_class=formatter)


def _port(text: str) -> int:
    return _whole_number(text, 0, 65535)


def _threads(text: str) -> int:
    return _whole_number(text, 1, 1024)


def _whole_number(text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {low} to {high}")
    return int(text)


def _digest(text: str) -> str:
    digits = text.removeprefix(HEAD_PREFIX)
    if not digits or set(digits) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected the first hex digits of a head's digest")
    return digits


if __name__ == "__main__":
    sys.exit(streams.run(main))
