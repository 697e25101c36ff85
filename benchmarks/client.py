"""Cost of the client: start, photo to tensor, tokens, and how busy `ask_many` keeps the server.

    python -m benchmarks client

Figures are medians; what is compared runs in turn, to cancel noise. The demo's encoder is faster than decoding a photo:
only a CLIP of full size can be kept busy.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
from PIL import Image

from benchmarks.report import Section, Settings, Table
from benchmarks.serving.servers import prepare
from demo import ensure_demo_dataset
from serving.rollout import DIRECT_CHANNEL
from serving.server import EmbeddedTriton
from vizwiz_client import Answer, VizwizClient
from vizwiz_client.contract import tensors
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tokenizer import tokenize

DEMO = Path("data/demo")
DATA = Path(os.environ.get("VIZWIZ_MATERIAL") or DEMO)  # a VizWiz folder
COMMAND = str(Path(sys.executable).with_name("vizwiz-client"))
IMPORT_ALL = (
    "import vizwiz_client._protocol, vizwiz_client._core, vizwiz_client._threads, vizwiz_client.contract.tokenizer"
)
Row = tuple[str, str, str]  # what, measured, target


def run(settings: Settings) -> Section:
    """Measure the parts, with the server where they need one."""
    rounds, count = (2, 50) if settings.quick else (15, 500)
    served = prepare("demo" if settings.quick else "ViT-B/32", settings.cache)
    photo = large_photo()
    rows = start(rounds) + prepare_inputs(photo, questions())
    with EmbeddedTriton(served.repository) as server, VizwizClient(server.grpc_url, timeout_s=600) as client:
        rows += ask_many(server.grpc_url, client, count)
    return [Table(("what", "measured", "goal"), rows, f"`ask_many` asks {served.name}.")]


def medians(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each action, ms; the first run of each warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def process(*command: str) -> Callable[[], object]:
    """An action that runs ``command``."""
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def python(program: str) -> Callable[[], object]:
    """An action that runs ``program`` in a Python of its own."""
    return process(sys.executable, "-c", program)


def start(rounds: int) -> list[Row]:
    """Interpreter, imports, help."""
    found = medians(
        {
            "none": python("pass"),
            "grpc": python("import tritonclient.grpc"),
            "package": python("import vizwiz_client"),
            "all": python(IMPORT_ALL),
            "help": process(COMMAND, "--help"),
        },
        rounds,
    )
    grpc = found["grpc"] - found["none"]

    def ratio(name: str) -> str:
        time_ms = found[name] - found["none"]
        return f"{time_ms:.0f} ms, {time_ms / grpc:.2f} x `import tritonclient.grpc`"

    return [
        ("`import vizwiz_client`", ratio("package"), "under 1.2 x"),
        ("all imports of a question (gRPC, NumPy, Pillow, tokenizer)", ratio("all"), "under 1.2 x"),
        ("`vizwiz-client --help`", f"{found['help']:.0f} ms", "under 100 ms"),
    ]


def prepare_inputs(photo: bytes, asked: Sequence[str]) -> list[Row]:
    """A JPEG of 2592 x 1936 pixels to uint8 [336, 336, 3], and questions to token ids."""
    image_size = 336
    found = medians(
        {
            "exact": lambda: to_pixels(load_photo(photo), image_size),
            "fast": lambda: to_pixels(load_photo(photo, image_size), image_size),
            "tokens": lambda: [tokenize(question) for question in asked],
        },
        15,
    )
    return [
        ("2592 x 1936 JPEG to tensor", f"{found['exact']:.0f} ms", ""),
        ("the same with `fast_decode`", f"{found['fast']:.0f} ms", "at most 25 ms"),
        ("tokens of a question", f"{1e3 * found['tokens'] / len(asked):.0f} us", "under 100 us"),
    ]


def ask_many(url: str, client: VizwizClient, count: int) -> list[Row]:
    """Share of the time in which the image encoder computes while ``count`` photos are streamed."""
    client.check()
    pairs: Iterator[tuple[Path, str]] = islice(zip(cycle(photos()), cycle(questions()), strict=False), count)
    before, started = compute_seconds(url), time.perf_counter()
    answered = sum(isinstance(result, Answer) for result in client.ask_many(pairs))
    wall, after = time.perf_counter() - started, compute_seconds(url)
    spent = {model: after[model] - before[model] for model in after}
    encoder = next(seconds for model, seconds in spent.items() if model.startswith(tensors.IMAGE_ENCODER_PREFIX))
    return [
        (f"{answered:,} of {count:,} photos answered, in all", f"{wall:.1f} s, {answered / wall:.1f} photos/s", ""),
        ("share of the time in which the image encoder computes", f"{encoder / wall:.0%}", "above 90%"),
    ]


def compute_seconds(url: str) -> dict[str, float]:
    """Seconds that each model computed."""
    found = {}
    for model in statistics_of(url):
        parts = [batch[part] for batch in model.get("batch_stats", []) for part in batch if part.startswith("compute_")]
        found[model["name"]] = sum(int(part.get("ns", 0)) for part in parts) / 1e9
    return found


def statistics_of(url: str) -> list[dict[str, Any]]:
    """Triton's statistics of all models: docs/protocol/extension_statistics.md of its server."""
    with tritonclient.grpc.InferenceServerClient(url, channel_args=DIRECT_CHANNEL) as triton:
        found: list[dict[str, Any]] = triton.get_inference_statistics("", as_json=True)["model_stats"]
        return found


def photos() -> list[Path]:
    """Photos of VIZWIZ_MATERIAL, or the demo's."""
    if DATA == DEMO:
        ensure_demo_dataset()
    found = sorted((DATA / "val").glob("*.jpg"))
    if not found:
        raise SystemExit(f"no photos in {DATA / 'val'}: VIZWIZ_MATERIAL names another folder than VizWiz's")
    return found


def questions() -> list[str]:
    """The first 1,000 questions of the same data."""
    split = "val" if DATA == DEMO else "test"
    records = json.loads((DATA / "Annotations" / f"{split}.json").read_text(encoding="utf-8"))
    return [record["question"] for record in records[:1_000]]


def large_photo() -> bytes:
    """A JPEG of 2592 x 1936 pixels: a real one, or smooth noise."""
    for path in photos():
        with Image.open(path) as image:
            if sorted(image.size) == [1936, 2592]:
                return path.read_bytes()
    coarse = np.random.default_rng(0).integers(0, 256, (61, 81, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((2592, 1936), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()
