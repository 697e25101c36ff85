"""What the client costs: start, install, photo to tensor, tokens, a question, and how busy it keeps a server.

    python -m benchmarks.client

Serves and asks the repository in triton_models/ (``make demo`` makes one). Some minutes. Figures are medians; what is
compared runs in turns, so that other work on the machine falls on all alike; CPU is processor time, without the waits.
The demo's encoder takes less time than decoding a photo does: only a CLIP of full size (--repository) can be kept busy.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc
from PIL import Image

from serving import ServingError
from serving.repository import check_repository
from serving.rollout import DIRECT_CHANNEL
from serving.server import EmbeddedTriton
from vizwiz_client import Answer, VizwizClient
from vizwiz_client.contract import tensors
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tokenizer import tokenize

DEMO = Path("data/demo")
DATA = Path(os.environ.get("VIZWIZ_MATERIAL") or DEMO)  # a VizWiz folder
QUESTION = "what is this?"
COMMAND = str(Path(sys.executable).with_name("vizwiz-client"))
IMPORT_ALL = (
    "import vizwiz_client._protocol, vizwiz_client._core, vizwiz_client._threads, vizwiz_client.contract.tokenizer"
)
MS = 1e3


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("triton_models"))
    parser.add_argument("--rounds", type=int, default=15, help="runs of each process (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=1_000, help="photos for ask_many (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        check_repository(arguments.repository)
    except ServingError as error:
        parser.error(str(error))
    photo = large_photo()
    table("Start, as processes", start(arguments.rounds))
    table("Photo and question to tensors", prepare(photo, questions()))
    with EmbeddedTriton(arguments.repository) as server, VizwizClient(server.grpc_url, timeout_s=600) as client:
        table("A question", ask(server.grpc_url, client, photo, arguments.rounds))
        table("ask_many", ask_many(server.grpc_url, client, arguments.photos))


def table(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n### {title}\n\n| what | measured | goal |\n|---|---|---|", flush=True)
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


class Cost(NamedTuple):
    """Seconds of an action, its child processes included."""

    wall: float
    cpu: float


def in_turns(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, Cost]:
    """The median cost of each action; the first run of each warms up and does not count."""
    costs: dict[str, list[Cost]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            before, started = cpu_seconds(), time.perf_counter()
            action()
            costs[name].append(Cost(time.perf_counter() - started, cpu_seconds() - before))
    return {name: Cost(*map(statistics.median, zip(*found[1:], strict=True))) for name, found in costs.items()}


def cpu_seconds() -> float:
    """Processor time of this process and of its children that ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def spoken(cost: Cost) -> str:
    """Both figures, in ms."""
    return f"{MS * cost.wall:.0f} ms (CPU {MS * cost.cpu:.0f})"


def process(*command: str) -> Callable[[], object]:
    """An action that runs ``command``."""
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def python(program: str) -> Callable[[], object]:
    """An action that runs ``program`` in a Python of its own."""
    return process(sys.executable, "-c", program)


def start(rounds: int) -> list[tuple[str, str, str]]:
    """Interpreter, imports, help."""
    found = in_turns(
        {
            "none": python("pass"),
            "grpc": python("import tritonclient.grpc"),
            "package": python("import vizwiz_client"),
            "all": python(IMPORT_ALL),
            "help": process(COMMAND, "--help"),
        },
        rounds,
    )
    none = found["none"]
    over = {name: Cost(cost.wall - none.wall, cost.cpu - none.cpu) for name, cost in found.items()}

    def row(what: str, name: str) -> tuple[str, str, str]:
        wall, cpu = over[name].wall / over["grpc"].wall, over[name].cpu / over["grpc"].cpu
        return f"{what}, over that", f"{spoken(over[name])}: {wall:.2f} x (CPU {cpu:.2f} x)", "under 1.2 x"

    return [
        ("the interpreter alone", spoken(none), ""),
        ("`import tritonclient.grpc`, over that", spoken(over["grpc"]), ""),
        row("`import vizwiz_client`", "package"),
        row("all that a question loads (gRPC, NumPy, Pillow, tokens)", "all"),
        ("`vizwiz-client --help`, in all", spoken(found["help"]), "under 100 ms"),
    ]


def prepare(photo: bytes, asked: Sequence[str]) -> list[tuple[str, str, str]]:
    """From a JPEG of 2592 x 1936 pixels to uint8 [336, 336, 3], and from questions to token ids."""
    side = 336
    found = in_turns(
        {
            "exact": lambda: to_pixels(load_photo(photo), side),
            "fast": lambda: to_pixels(load_photo(photo, side), side),
            "tokens": lambda: [tokenize(question) for question in asked],
        },
        15,
    )
    program = (
        "import time; from vizwiz_client.contract.tokenizer import tokenize; s = time.perf_counter(); "
        "tokenize('what is this?'); print(time.perf_counter() - s)"
    )
    first = statistics.median(
        float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
        for _ in range(9)
    )
    return [
        ("2592 x 1936 JPEG to tensor", spoken(found["exact"]), ""),
        ("the same with scaled decoding (`fast_decode`)", spoken(found["fast"]), "at most 25 ms"),
        (
            f"tokens, per question of {len(asked):,}",
            f"{1e6 * found['tokens'].wall / len(asked):.0f} us (CPU {1e6 * found['tokens'].cpu / len(asked):.0f})",
            "under 100 us",
        ),
        ("the first question's tokens, table included", f"{MS * first:.1f} ms", ""),
    ]


def ask(url: str, client: VizwizClient, photo: bytes, rounds: int) -> list[tuple[str, str, str]]:
    """The command and the library on one photo, and the server's part of it."""
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large.jpg", Path(folder) / "small.jpg"
        large.write_bytes(photo)
        load_photo(photo).resize((640, 480)).save(small)
        command = (COMMAND, "ask", QUESTION, "--url", url)
        before = server_seconds(url)
        found = in_turns(
            {
                "grpc": python("import tritonclient.grpc"),
                "640 x 480 JPEG": process(*command[:2], str(small), *command[2:]),
                "2592 x 1936 JPEG": process(*command[:2], str(large), *command[2:]),
                "2592 x 1936 JPEG, `--fast-decode`": process(*command[:2], str(large), *command[2:], "--fast-decode"),
            },
            rounds,
        )
        after = server_seconds(url)
        connected = in_turns({"ask": lambda: client.ask(photo, QUESTION)}, 50)["ask"]
    served, grpc = (after[0] - before[0]) / (after[1] - before[1]), found.pop("grpc")
    return [
        ("a process that imports `tritonclient.grpc`", spoken(grpc), ""),
        ("the server's own time (Triton's statistics, mean)", f"{MS * served:.1f} ms", ""),
        *(
            (f"`ask` of a {what}, over both", spoken(Cost(wall - grpc.wall - served, cpu - grpc.cpu)), "at most 150 ms")
            for what, (wall, cpu) in found.items()
        ),
        ("`VizwizClient.ask` of the large one, connected", spoken(connected), ""),
    ]


def ask_many(url: str, client: VizwizClient, count: int) -> list[tuple[str, str, str]]:
    """How busy ``count`` photos in a stream keep the server, by its own statistics."""
    client.check()
    pairs: Iterator[tuple[Path, str]] = islice(zip(cycle(photos()), cycle(questions()), strict=False), count)
    before, started = executions(url), time.perf_counter()
    answered = sum(isinstance(result, Answer) for result in client.ask_many(pairs))
    wall, after = time.perf_counter() - started, executions(url)
    spent = {model: after[model] - before[model] for model in after}
    encoder = next(seconds for model, seconds in spent.items() if model.startswith(tensors.IMAGE_ENCODER_PREFIX))
    inside = spent[tensors.ENSEMBLE]
    return [
        (f"{answered:,} of {count:,} photos answered, in all", f"{wall:.1f} s, {count / wall:.1f} photos/s", ""),
        ("time in which the image encoder computes", f"{encoder / wall:.0%}", "above 90%"),
        ("requests inside the server, on average", f"{inside / wall:.2f}", ""),
    ]


def server_seconds(url: str) -> tuple[float, int]:
    """Seconds that the ensemble took in all, queues included, and its requests."""
    (model,) = statistics_of(url, tensors.ENSEMBLE)
    success = model["inference_stats"]["success"]
    return int(success.get("ns", 0)) / 1e9, int(success.get("count", 0))


def executions(url: str) -> dict[str, float]:
    """Seconds that each model computed, one batch after the other; of the ensemble, seconds of its requests."""
    found = {}
    for model in statistics_of(url, ""):
        parts = [batch[part] for batch in model.get("batch_stats", []) for part in batch if part.startswith("compute_")]
        found[model["name"]] = sum(int(part.get("ns", 0)) for part in parts) / 1e9
    return found | {tensors.ENSEMBLE: server_seconds(url)[0]}


def statistics_of(url: str, model: str) -> list[dict[str, Any]]:
    """https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md"""
    with tritonclient.grpc.InferenceServerClient(url, channel_args=DIRECT_CHANNEL) as triton:
        found: list[dict[str, Any]] = triton.get_inference_statistics(model, as_json=True)["model_stats"]
        return found


def photos() -> list[Path]:
    """Photos of VIZWIZ_MATERIAL, or the demo's."""
    found = sorted((DATA / "val").glob("*.jpg"))
    if not found:
        sys.exit(f"no photos in {DATA / 'val'}: `make demo` draws some, VIZWIZ_MATERIAL names a VizWiz folder")
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


if __name__ == "__main__":
    main()
