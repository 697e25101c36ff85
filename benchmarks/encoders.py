"""Latency and memory of CLIP's encoders: PyTorch, and this project's graphs as export publishes them.

    python -m benchmarks encoders

Every measurement runs in a process of its own, which gives its peak memory (of the host, not of a GPU). A share counts
what a system multiplies: the graphs compute only one position of a transformer's last block (export/clip_graph.py).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import cpu_rates, cuda_rates, peak_gb
from benchmarks.report import Section, Settings, Table, kinds_here
from benchmarks.serving.servers import prepare
from export.targets import GRAPH_KINDS, GraphKind, open_graph
from training.backbone import load_clip, normalise_pixels
from vizwiz_client.contract import tensors, tokenizer

SECONDS, MAX_RUNS = 5.0, 50  # of a measurement, after a run that warms up
KINDS = {kind.name: kind for kind in GRAPH_KINDS}
EAGER = {"eager fp32": "fp32", "eager bf16": "bf16", "eager fp16": "fp16"}  # PyTorch; the last two by autocast


@dataclass(frozen=True)
class Case:
    """One measurement."""

    clip: str
    system: str  # a kind of graph, or one of EAGER
    file: str  # its graph or checkpoint
    image_size: int
    batch: int
    length: int  # positions of the questions; 0 for images
    device: str
    seconds: float

    @property
    def precision(self) -> str:
        """The type of its products."""
        return EAGER.get(self.system) or KINDS[self.system].precision


def run(settings: Settings) -> Section:
    """Measure every case, eager fp32, the baseline, first."""
    cuda = settings.device == "cuda"
    rates = in_a_process(settings.device, "rates")
    rows: list[list[str]] = []
    eager: dict[tuple[int, int], float] = {}
    gflop: dict[int, tuple[float, float]] = {}  # of one image, or one text by its length: of PyTorch, and of a graph
    for case in cases(settings.large, settings, cuda):
        found = in_a_process(settings.device, json.dumps(asdict(case)))
        if case.system == "eager fp32":
            eager[case.batch, case.length] = found["median_ms"]
            gflop.setdefault(case.length, (found.get("gflop", 0.0), found.get("gflop_of_graph", 0.0)))
        baseline = eager[case.batch, tensors.CONTEXT_LENGTH if case.length else 0]
        operations = gflop.get(case.length, (0.0, 0.0))[case.system in KINDS]
        share = case.batch * operations / found["median_ms"] * 1e3 / rates[case.precision]
        rows.append(
            [
                f"{case.batch} x {f'text, {case.length} positions' if case.length else 'image'}",
                case.system,
                f"{share:.0%}" if share else "",
                f"{baseline / found['median_ms']:.2f} x",
                f"{found['median_ms']:,.1f}, {found['min_ms']:,.1f} ms",
                f"{found['peak_gb']:.2f} GB",
            ]
        )
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    products = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    text = (
        f"{settings.large} size. Matrix rates, G operations/s: {products}. PyTorch computes 77 positions of any "
        "question, and is the base of each question's speed-up."
    )
    header = ("input", "system", "share of its type's rate", "speed-up over eager fp32", "median, least", "peak memory")
    return [Table(header, rows, text)]


def cases(clip: str, settings: Settings, cuda: bool) -> Iterator[Case]:
    """What to measure of one CLIP."""
    kinds = [kind for kind in GRAPH_KINDS if kind.device != "cpu"] if cuda else kinds_here()
    served = [prepare(clip, settings.cache, kind) for kind in kinds]
    half = "fp16" if cuda else "bf16"
    eager = ["eager fp32"] + [f"eager {half}"] * (cuda or GraphKind("portable", "bf16") in kinds)
    seconds = 0.5 if settings.quick else SECONDS
    shapes = [(1, 0), (1, tensors.CONTEXT_LENGTH), (1, 8), (8, 0)]  # the batch, and the positions of a question
    for batch, length in shapes[: 1 if settings.quick else None]:
        common: Any = (served[0].image_size, batch, length, settings.device, seconds)
        if length in (0, tensors.CONTEXT_LENGTH):
            for system in eager:
                yield Case(clip, system, str(served[0].checkpoint), *common)
        for each in served:
            graph = each.graph(tensors.TEXT_ENCODER_PREFIX if length else tensors.IMAGE_ENCODER_PREFIX)
            yield Case(clip, each.target.name, str(graph), *common)


def example(case: Case) -> Any:
    """Input of a case: uint8 [B, S, S, 3] or int32 [B, T]."""
    generator = np.random.default_rng(0)
    if not case.length:
        return generator.integers(0, 256, (case.batch, case.image_size, case.image_size, 3), dtype=np.uint8)
    ids = generator.integers(0, tokenizer.START_OF_TEXT, (case.batch, case.length), dtype=np.int32)
    ids[:, 0], ids[:, -1] = tokenizer.START_OF_TEXT, tokenizer.END_OF_TEXT
    return ids


def measure(case: Case) -> dict[str, float]:
    """Time a case in this process; of eager fp32, count its floating-point operations too."""
    run, found = runner(case)
    run()  # warm up: allocations, late compilation
    times: list[float] = []
    while len(times) < 2 or (sum(times) < case.seconds and len(times) < MAX_RUNS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return {"median_ms": 1e3 * statistics.median(times), "min_ms": 1e3 * min(times), "peak_gb": peak_gb(), **found}


def runner(case: Case) -> tuple[Callable[[], object], dict[str, float]]:
    """The function to time, and what is known of it."""
    inputs = example(case)
    if case.system in KINDS:
        graph = open_graph(Path(case.file), KINDS[case.system])
        feed = {(tensors.TOKENS if case.length else tensors.IMAGE).name: inputs}
        return lambda: graph(feed), {}
    device = torch.device(case.device)
    model = load_clip(case.file).model.to(device)
    encode = model.encode_text if case.length else model.encode_image
    given = torch.from_numpy(inputs) if case.length else normalise_pixels(torch.from_numpy(inputs)).contiguous()
    reduced = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(case.precision)

    @torch.inference_mode()
    def run() -> object:
        with torch.autocast(device.type, reduced, enabled=reduced is not None):
            return encode(given.to(device)).cpu()  # there and back, as a graph's inputs and outputs go

    if case.system != "eager fp32" or case.batch > 1:
        return run, {}
    operations = count(run)
    return run, {"gflop": operations, "gflop_of_graph": operations - skipped(model, text=bool(case.length))}


def count(run: Callable[[], object]) -> float:
    """Floating-point operations of ``run``, in thousand millions."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    on_a_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which PyTorch does not count by itself
    with FlopCounterMode(display=False, custom_mapping={on_a_cpu: attention}) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9


def skipped(model: Any, *, text: bool) -> float:
    """What PyTorch computes for one input and a graph does not, in thousand millions of operations.

    Of the last block: queries, attention, its projection and the MLP, of all positions but one.
    """
    tower = model if text else model.visual
    if not hasattr(tower, "transformer"):  # a ResNet's attention pooling has one query in PyTorch too
        return 0.0
    positions, width = tower.positional_embedding.shape
    return float(2 * (positions - 1) * (10 * width**2 + 2 * positions * width)) / 1e9


def in_a_process(device: str, task: str) -> dict[str, float]:
    """Run :func:`main` in a process of its own: the rates, or a case in JSON."""
    # ONNX Runtime takes a GPU where it sees one
    env = os.environ if device == "cuda" else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.encoders", device, task], stdout=subprocess.PIPE, text=True, env=env
    )
    if done.returncode:
        raise SystemExit(f"the measurement of {task} ended with exit status {done.returncode}; see above")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run one task in this process: ``DEVICE rates``, or ``DEVICE CASE``."""
    device, task = sys.argv[1:]
    if task == "rates":
        print(json.dumps(cuda_rates() if device == "cuda" else cpu_rates()))
    else:
        print(json.dumps(measure(Case(**json.loads(task)))))


if __name__ == "__main__":
    main()
