#!/usr/bin/env python3
"""The container's command: Triton as production wants it, its admin APIs behind a key, and a stop that drains.

    serve.py [OPTION ...] [TRITONSERVER_OPTION ...]

What is not an option of this program goes to ``tritonserver``, after the flags set here. Graphs and labels are held
against the digests in their configurations first, and a process of the Python backend that dies is replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from deploy.watch import Served, Watch
from serving.launch import limit
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tensors import ENSEMBLES

ADMIN_APIS = "model-repository,shared-memory,trace,logging"  # metadata, model-config and statistics stay readable
ADMIN_HEADER = "vizwiz-admin-key"  # over gRPC, Triton puts `triton-grpc-protocol-` before it
KEY = re.compile(r"[A-Za-z0-9_-]{32,}")
CONNECTION_AGE_S = 300  # a client then connects, hence looks the replicas up, again: new ones get their share
DRAIN_S = 60  # a client's default patience
EXIT_S = 30  # for Triton to end, once nothing is in flight
POLL_S = 0.1
ADMIN_S = 600  # a model may take that long to load again

CONFIG_FILE = "config.pbtxt"
_MODEL = re.compile(r'model_name: "([^"]+)"')  # a step, in the text that an ensemble's configuration is
_DIGEST = re.compile(
    rf'key: "({tensors.MODEL_DIGEST_PARAMETER}|{tensors.LABELS_DIGEST_PARAMETER}[^"]+)"'
    r'\s+value \{\s+string_value: "([0-9a-f]{64})"'
)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then drain; return tritonserver's exit status, as a shell tells it."""
    arguments, others = _parser().parse_known_args(argv)
    key = read_key(arguments.admin_key_file)
    # before what takes seconds: a container's first process ignores signals that it does not handle
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    check_digests(Path(arguments.repository))
    limit()
    environment = {**os.environ, "VIZWIZ_SERVING_THREADS": str(arguments.threads)}  # the preprocess model's
    # a session of its own: Ctrl-C reaches this process alone, and the server is stopped in order
    server = subprocess.Popen([*command(arguments, key), *others], env=environment, start_new_session=True)
    watch = watch_over(server.pid, arguments, key)
    try:
        watch.start()
        server.wait()
    except KeyboardInterrupt:
        time.sleep(arguments.stop_delay_s)
        watch.stop()
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


def check_digests(repository: Path) -> None:
    """Hold what the ensembles of ``repository`` name against the digests in its configurations; exit if it differs.

    Triton's native backends load whatever is there. A repository that is not a folder here is left to Triton.
    """
    configs = [repository / ensemble / CONFIG_FILE for ensemble in ENSEMBLES]
    named = {model for config in configs if config.is_file() for model in _MODEL.findall(config.read_text())}
    for path, expected in (pair for model in sorted(named) for pair in digests(repository / model)):
        if (got := sha256(path)) != expected:
            sys.exit(
                f"serve.py: {path} has SHA-256 {got}, its {CONFIG_FILE} says {expected}: the file is damaged or "
                "another one; publish it again with `python -m export.to_onnx`"
            )


def digests(model: Path) -> Iterator[tuple[Path, str]]:
    """The graph (or code) and label files in a model's folder, each with the SHA-256 in its configuration."""
    config = model / CONFIG_FILE
    for key, expected in _DIGEST.findall(config.read_text()) if config.is_file() else []:
        if key != tensors.MODEL_DIGEST_PARAMETER:
            yield model / key.removeprefix(tensors.LABELS_DIGEST_PARAMETER), expected
        else:
            yield next((model / "1").glob("model.*"), model / "1" / "model.onnx"), expected


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex, or why there is none."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        return f"none ({error.strerror})"
    return digest.hexdigest()


def watch_over(server: int, arguments: argparse.Namespace, key: str) -> Watch:
    """A watch over the Python backend's processes, which Triton does not start again."""
    ask = partial(_ask, arguments.http_port, key)
    served = Served(ask)

    def in_python() -> set[str]:
        return {model for model in served() if model.startswith(tensors.PREPROCESS_PREFIX)}

    return Watch(server, Path(arguments.repository), in_python, lambda: None, ask, partial(print, file=sys.stderr))


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
        f"--exit-timeout-secs={EXIT_S}",
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
            _ask(http_port, key, "POST", f"repository/models/{ensemble}/unload", timeout_s=DRAIN_S)
        while b"UNLOADING" in _ask(http_port, key, "POST", "repository/index", timeout_s=DRAIN_S)[1]:
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)


def _ask(http_port: int, key: str, method: str, path: str, timeout_s: float = ADMIN_S) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost", http_port, timeout=timeout_s)
    try:
        connection.request(method, f"/v2/{path}", headers={ADMIN_HEADER: key})
        response = connection.getresponse()
        return response.status, response.read()
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
