"""The command ``vizwiz-gateway``."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

from vizwiz_client import VizwizError
from vizwiz_client.contract import streams
from vizwiz_gateway.app import create_app
from vizwiz_gateway.settings import Settings, SettingsError

PREFIX = "VIZWIZ_GATEWAY_"  # of environment variables
TOKEN_VARIABLE = f"{PREFIX}TOKEN"

MAX_CONNECTIONS = 1_000  # open at once, idle ones included; further ones get 503
BACKLOG = 128  # connections that asyncio accepts in one turn of its loop; each takes a descriptor
MAX_FILES = 65_536  # open descriptors; a burst of connections exceeds the usual soft limit of 1,024
KEEP_ALIVE_S = 75  # of idle connections; proxies close theirs after 60 s, so none sends a request while we close
SHUTDOWN_MARGIN_S = 10  # beyond the answer timeout, for the requests in progress when the gateway stops

_HELP = f"""\
Serve a REST endpoint (POST /v1/ask) and a web page in front of a Triton that serves a VizWiz model.

Every flag but --json is also an environment variable, {PREFIX} and the flag's name in capitals:
{PREFIX}MAX_REQUESTS. Lists are separated by commas. Flags have precedence. {TOKEN_VARIABLE}
holds the token itself, in place of --token-file.
"""
_EXAMPLES = """\
examples:
  vizwiz-gateway                                  in front of localhost:8001, on http://localhost:8080
  vizwiz-gateway --triton triton:8001 --host 0.0.0.0 --allowed-host ask.example.org --token-file /run/secrets/token
  curl -F photo=@img.jpg -F question="what is this?" localhost:8080/v1/ask

exit status: 0 stopped by Ctrl-C or SIGTERM, 1 it could not listen, 2 invalid flags or environment
"""


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError("expected a whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a number of seconds") from None


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a file that holds the token ({error})") from error


class Option(NamedTuple):
    """A flag and its environment variable."""

    setting: str  # field of Settings
    flag: str
    metavar: str
    help: str
    read: Callable[[str], Any] = str  # raises ValueError: what was expected

    @property
    def variable(self) -> str:
        return PREFIX + self.flag.removeprefix("--").replace("-", "_").upper()


OPTIONS = (
    Option("triton", "--triton", "HOST:PORT", "Triton's gRPC address"),
    Option("host", "--host", "ADDRESS", "address to listen at"),
    Option("port", "--port", "PORT", "port to listen at; 0 takes any free one", _whole_number),
    Option(
        "allowed_hosts",
        "--allowed-host",
        "NAME",
        "host name by which clients may reach the gateway, beside localhost and IP addresses; repeatable",
        _list,
    ),
    Option(
        "allowed_origins",
        "--allowed-origin",
        "ORIGIN",
        "web site whose pages may call /v1 (CORS), such as https://example.org; repeatable",
        _list,
    ),
    Option("token", "--token-file", "FILE", "file of the secret that requests must carry", _token),
    Option("max_photo_bytes", "--max-photo-bytes", "N", "size of the largest photo file, bytes", _whole_number),
    Option(
        "max_requests",
        "--max-requests",
        "N",
        "requests admitted at once, from upload to answer; others get 503",
        _whole_number,
    ),
    Option("decode_threads", "--decode-threads", "N", "photos decoded at once", _whole_number),
    Option("upload_timeout_s", "--upload-timeout", "SECONDS", "seconds for a request to arrive", _seconds),
    Option("answer_timeout_s", "--answer-timeout", "SECONDS", "seconds from the complete request to 504", _seconds),
)


def main(argv: Sequence[str] | None = None) -> int | str | None:
    """Run the command line ``argv`` (default: the process's own) and return its exit status."""
    return streams.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = vars(parser.parse_args(argv))
    as_json = arguments.pop("json")
    try:
        settings = read_settings(arguments, os.environ)
        app = create_app(settings)
    except (SettingsError, VizwizError) as error:
        parser.error(str(error))
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        print(
            f"gateway: error: cannot listen at {settings.host} port {settings.port} ({error.strerror}); give another "
            "--port, 0 for any free one",
            file=sys.stderr,
        )
        return 1
    except UnicodeError:  # a label that is empty or over 63 characters
        parser.error(f"got --host={settings.host}, expected a host name or an IP address")
    _set_limits()
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises the signal that stopped it again
        signal.signal(number, signal.default_int_handler)
    config = uvicorn.Config(
        app,
        loop="auto",  # uvloop, but on Windows
        http="h11",  # httptools answers requests with a bare 400 before the gateway can name the error
        access_log=False,
        log_level="error",  # warnings are of clients, who could flood the log
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        limit_concurrency=MAX_CONNECTIONS,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.answer_timeout_s) + SHUTDOWN_MARGIN_S,
    )
    with suppress(KeyboardInterrupt):
        _Server(config, listener, as_json).run(sockets=[listener])
    return 0


def read_settings(flags: Mapping[str, str | list[str] | None], environment: Mapping[str, str]) -> Settings:
    """Settings from flags; where a flag is absent, from its environment variable; else the default.

    Args:
        flags: the text of each flag, or its texts if it is repeatable, by field of Settings; None if it is absent.
        environment: variables; one that is set counts, even if it is empty.

    Raises:
        SettingsError: a value is invalid, or a variable that begins with PREFIX is unknown.
    """
    known = [TOKEN_VARIABLE, *(option.variable for option in OPTIONS)]
    if unknown := sorted(name for name in environment if name.startswith(PREFIX) and name not in known):
        raise SettingsError(f"got the environment variable {unknown[0]}, expected one of {', '.join(sorted(known))}")
    values: dict[str, Any] = {"token": environment.get(TOKEN_VARIABLE)}
    for option in OPTIONS:
        source, text = option.flag, flags.get(option.setting)
        if text is None:
            source, text = option.variable, environment.get(option.variable)
        if text is None:
            continue
        text = text if isinstance(text, str) else ",".join(text)
        try:
            values[option.setting] = option.read(text)
        except ValueError as error:
            raise SettingsError(f"got {source}={text!r}, {error}") from error
    return Settings(**values)


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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    # Connections inherit it; asyncio sets it only on sockets made with IPPROTO_TCP. Without it, the body of a response
    # waits 40 ms for the acknowledgement of its headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _set_limits() -> None:
    """No core dump, which would write photos and questions to disk; descriptors for a burst of connections."""
    with suppress(ImportError):  # Windows
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        # a byte is too small for a file, and the only limit that a pipe in core_pattern respects: 0 is ignored there
        core = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
        resource.setrlimit(resource.RLIMIT_CORE, (core, core))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
        with suppress(ValueError, OSError):  # macOS allows less than its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vizwiz-gateway",
        usage="%(prog)s [options]",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for option in OPTIONS:
        default = getattr(Settings(), option.setting)
        parser.add_argument(
            option.flag,
            dest=option.setting,
            action="append" if option.read is _list else "store",
            metavar=option.metavar,
            help=option.help + (f" (default: {str(default).removesuffix('.0')})" if default else ""),
        )
    parser.add_argument("--json", action="store_true", help="when it listens, print its address as one line of JSON")
    return parser
