"""The image encoder of the server beside infinity, which gives features of photos alone.

    python -m benchmarks infinity

As benchmarks/peers.py: same random weights, same photos, one run, measured in turn.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.architectures import write_hugging_face
from benchmarks.encoders import in_a_process
from benchmarks.peers import OURS, compare, install, prepare_kinds
from benchmarks.report import Section, Settings
from benchmarks.serving.load import INFINITY
from benchmarks.serving.measure import System
from benchmarks.serving.servers import http_server, triton
from serving.access import LOOPBACK
from vizwiz_client.contract.tensors import IMAGE_ENCODER_PREFIX

FLAGS = "--engine torch --device cpu --dtype float32 --no-bettertransformer --no-compile --no-model-warmup"
FLAGS += f" --no-vector-disk-cache --log-level=warning --host={LOOPBACK}"


def run(settings: Settings) -> Section:
    """Measure both with one photo at a time, and with 16 at once."""
    python = install(settings.cache / "peers")
    served = prepare_kinds(settings)
    fp32, folder = served["fp32"], settings.cache / settings.large.replace("/", "-") / "hugging-face"
    write_hugging_face(settings.large, fp32.checkpoint, folder)
    rates = in_a_process("cpu", "rates")  # before any server runs beside it
    with ExitStack() as stack:
        systems = [
            System(OURS, precision, each.model(IMAGE_ENCODER_PREFIX), each, stack.enter_context(triton(each)))
            for precision, each in served.items()
        ]
        command = ["-m", "infinity_emb.cli", "v2", f"--model-id={folder.resolve()}", *FLAGS.split()]
        server = stack.enter_context(http_server(command, "/health", str(python)))
        systems.append(System("infinity", "fp32", INFINITY, fp32, server))
        text = (
            f"{settings.large} size, random weights, photos of 640 x 480 alone. Ours gets decoded photos and answers "
            "in binary; infinity decodes JPEGs and answers in JSON. It runs without BetterTransformer and compilation."
        )
        return compare(systems, settings, rates, text)
