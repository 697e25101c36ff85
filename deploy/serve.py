#!/usr/bin/env python3
"""The container's command: Triton as production wants it, its admin APIs behind a key, and a stop that drains.

    serve.py [OPTION ...] [TRITONSERVER_OPTION ...]

What is not an option of this program goes to ``tritonserver``, after the flags set here.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vizwiz_client.contract.tensors import ENSEMBLES

ADMIN_APIS = "model-repository,shared-memory,trace,logging"  # metadata, model-config and statistics stay readable
ADMIN_HEADER = "vizwiz-admin-key"  # over gRPC, Triton puts `triton-grpc-protocol-` before it
KEY = re.compile(r"[A-Za-z0-9_-]{32,}")
CONNECTION_AGE_S = 300  # a client then connects, hence looks the replicas up, again: new ones get their share
DRAIN_S = 30
POLL_S = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then drain; return tritonserver's exit status, as a shell tells it."""
    arguments, others = _parser().parse_known_args(argv)
    key = read_key(arguments.admin_key_file)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    # a session of its own: Ctrl-C reaches this process alone, and the server is stopped in order
    server = subprocess.Popen([*command(arguments, key), *others], start_new_session=True)
    try:
        server.wait()
    except KeyboardInterrupt:
        time.sleep(arguments.stop_delay_s)
        drain(arguments.http_port, key)
    finally:
        server.terminate()
        server.wait()
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def read_key(path: Path) -> str:
    """Return the key of the admin APIs, which the file ``path`` holds; exit if it holds none that is hard to guess."""
    try:
        key = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        key, got = "", str(error)
    else:
        got = f"got {len(key)} characters"
    if KEY.fullmatch(key):
        return key
    sys.exit(
        f"serve.py: {path} must hold the key of the admin APIs, 32 or more of A-Z a-z 0-9 _ - ({got}): "
        f"write one with `openssl rand -hex 32`"
    )


def options(argv: Sequence[str]) -> argparse.Namespace:
    """The options of this program in ``argv``, or their defaults."""
    return _parser().parse_known_args(argv)[0]


def command(arguments: argparse.Namespace, key: str) -> list[str]:
    """The command line of tritonserver."""
    restricted = f"{ADMIN_APIS}:{ADMIN_HEADER}={key}"
    return [
        "tritonserver",
        f"--model-repository={arguments.repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={ensemble}" for ensemble in ENSEMBLES),  # and their steps with them
        "--disable-auto-complete-config",  # what is served is what config.pbtxt says
        f"--http-port={arguments.http_port}",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        f"--grpc-max-connection-age={CONNECTION_AGE_S * 1000}",
        f"--grpc-max-connection-age-grace={DRAIN_S * 1000}",
        f"--exit-timeout-secs={DRAIN_S}",
        f"--cache-config=local,size={arguments.cache_bytes}",
        "--metrics-config=summary_latencies=true",
        # one pool of threads for all models, so that the encoders do not fight over the cores
        "--backend-config=onnxruntime,enable-global-threadpool=1",
        f"--backend-config=onnxruntime,intra_op_thread_count={arguments.threads}",
    ]


def drain(http_port: int, key: str) -> None:
    """Take no new request and wait for those in flight, at most ``DRAIN_S``.

    Triton's own way, at SIGTERM, fails an ensemble's request that is between two steps (measured on 2.51).
    """
    deadline = time.monotonic() + DRAIN_S
    with suppress(OSError, http.client.HTTPException):  # it is still loading, or gone
        for ensemble in ENSEMBLES:
            _admin(http_port, key, f"models/{ensemble}/unload")
        while b"UNLOADING" in _admin(http_port, key, "index") and time.monotonic() < deadline:
            time.sleep(POLL_S)


def _admin(http_port: int, key: str, path: str) -> bytes:
    connection = http.client.HTTPConnection("localhost", http_port, timeout=5)
    try:
        connection.request("POST", f"/v2/repository/{path}", headers={ADMIN_HEADER: key})
        return connection.getresponse().read()
    finally:
        connection.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--repository", default="/models", help="the model repository (default: %(default)s)")
    parser.add_argument(
        "--admin-key-file",
        type=Path,
        default="/run/secrets/admin_key",
        help="file of the key that the admin APIs ask for (default: %(default)s)",
    )
    parser.add_argument("--http-port", type=int, default=8000, help="port of HTTP (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="threads of ONNX Runtime on the CPU; give a container's limit (default: one for each core)",
    )
    parser.add_argument(
        "--cache-bytes",
        type=int,
        default=256 << 20,
        help="memory for the answers of the text encoder, 4 bytes a feature (default: %(default)s)",
    )
    parser.add_argument(
        "--stop-delay-s",
        type=float,
        default=0,
        help="seconds to go on serving after SIGTERM, until balancers know (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
