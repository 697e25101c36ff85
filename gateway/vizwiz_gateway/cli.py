"""The command ``vizwiz-gateway``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn

from vizwiz_client import VizwizError
from vizwiz_client.contract import streams
from vizwiz_gateway.app import create_app
from vizwiz_gateway.settings import PREFIX, Settings, SettingsError

MAX_CONNECTIONS = 1_000  # open at once, idle ones included; further ones get 503
BACKLOG = 128  # connections that asyncio accepts at a time, each with a descriptor
MAX_FILES = 65_536  # open descriptors; the usual soft limit, 1,024, is less than a burst of connections takes
KEEP_ALIVE_S = 75  # of idle connections: longer than clients and proxies (60 s) keep them, or a request meets the close
SHUTDOWN_TIMEOUT_S = 70  # for requests in progress: a little over the default of --answer-timeout

_HELP = f"""\
Serve a REST endpoint (POST /v1/ask) and a web page in front of a Triton that serves a VizWiz model.

Every flag can be given as an environment variable instead: --max-requests as {PREFIX}MAX_REQUESTS, and so on. The
token is read from {PREFIX}TOKEN or from --token-file.
"""
_EXAMPLES = """\
examples:
  vizwiz-gateway                                  in front of localhost:8001, on http://localhost:8080
  vizwiz-gateway --triton triton:8001 --host 0.0.0.0 --allowed-host ask.example.org --token-file /run/secrets/token
  curl -F photo=@img.jpg -F question="what is this?" localhost:8080/v1/ask

exit status: 0 stopped by Ctrl-C or SIGTERM, 1 it could not start, 2 wrong arguments
"""


def main(argv: Sequence[str] | None = None) -> int | str | None:
    """Run the command line ``argv`` (default: the process's own) and return its exit status."""
    return streams.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments = vars(_parser().parse_args(argv))
    as_json, token_file = arguments.pop("json"), arguments.pop("token_file")
    try:
        settings = Settings.from_environment(os.environ, **arguments, token=_read_token(token_file))
        app = create_app(settings)
        listener = _listen(settings.host, settings.port)
    except (SettingsError, VizwizError) as error:
        print(f"gateway: error: {error}", file=sys.stderr)
        return 1
    _set_limits()
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises the signal that stopped it again
        signal.signal(number, signal.default_int_handler)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="error",  # warnings are of clients, who could flood the log
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        limit_concurrency=MAX_CONNECTIONS,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
    with suppress(KeyboardInterrupt):
        _Server(config, listener, as_json).run(sockets=[listener])
    return 0


class _Server(uvicorn.Server):
    """Prints its address when it listens."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, as_json: bool) -> None:
        super().__init__(config)
        host, port = listener.getsockname()[:2]
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._as_json = as_json

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(json.dumps({"gateway": self._url}) if self._as_json else f"gateway: {self._url}", flush=True)


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--token-file {path} cannot be read ({error})") from error
    if not token:
        raise SettingsError(f"--token-file {path} is empty, expected the token")
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Connections inherit it; asyncio sets it only on sockets made with IPPROTO_TCP. Without it, the body of a
        # response waits 40 ms for the acknowledgement of its headers.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise SettingsError(
            f"cannot listen at {host} port {port} ({error.strerror}); give another --port, 0 for any free one"
        ) from error


def _set_limits() -> None:
    """No core dump, which would write photos and questions to disk; descriptors for a burst of connections."""
    with suppress(ImportError):  # Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vizwiz-gateway",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Settings()
    parser.add_argument("--triton", metavar="HOST:PORT", help=f"Triton's gRPC address (default: {default.triton})")
    parser.add_argument("--host", metavar="ADDRESS", help=f"address to listen at (default: {default.host})")
    parser.add_argument(
        "--port", type=int, metavar="PORT", help=f"port to listen at; 0 takes any free one (default: {default.port})"
    )
    parser.add_argument(
        "--allowed-host",
        dest="allowed_hosts",
        action="append",
        metavar="NAME",
        help="host name by which clients may reach the gateway, beside localhost and IP addresses; repeatable",
    )
    parser.add_argument(
        "--allowed-origin",
        dest="allowed_origins",
        action="append",
        metavar="ORIGIN",
        help="web site whose pages may call /v1 (CORS), such as https://example.org; repeatable",
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file of the secret that requests must carry")
    for name, kind, text in (
        ("max_photo_bytes", int, "size of the largest photo file, bytes"),
        ("max_requests", int, "requests admitted at once, from upload to answer; others get 503"),
        ("decode_threads", int, "photos decoded at once"),
        ("upload_timeout_s", float, "seconds for a request to arrive"),
        ("answer_timeout_s", float, "seconds from the complete request to 504"),
    ):
        flag = f"--{name.removesuffix('_s').replace('_', '-')}"
        metavar = "SECONDS" if kind is float else "N"
        help_text = f"{text} (default: {getattr(default, name):,})"
        parser.add_argument(flag, dest=name, type=kind, metavar=metavar, help=help_text)
    parser.add_argument("--json", action="store_true", help="when it listens, print its address as one line of JSON")
    return parser
