"""How times and sizes grow with answers, features, batch, pixels and heads; draws docs/growth.png.

    python -m benchmarks growth

Each row varies one number. Its slope is the exponent of a power law, fitted to logarithms: 1 is proportional, 0
constant.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.report import RESULTS, Section, Settings, Table
from benchmarks.serving.servers import prepare
from export.head_graph import write_head
from export.targets import GraphKind, open_graph
from training.labels import Targets
from training.model import ClipEnsemble, GatedHead, Predictor
from training.trainer import total_loss
from vizwiz_client.contract import tensors
from vizwiz_client.contract.image import load_photo, to_pixels

ANSWERS, FEATURES, BATCH, TYPES = 5_860, 768, 128, 4
VARIED = {
    "answers": (1_000, 5_000, 10_000, 25_000, 50_000),
    "features": (256, 512, 768, 1_024, 1_280),
    "heads": (1, 2, 5, 10),
    "batch": (1, 2, 4, 8, 16),
    "megapixels": (0.3, 1.0, 3.0, 6.0, 12.0),
}
Points = dict[str, list[float]]  # what is measured -> its value at each number


def run(settings: Settings) -> Section:
    """Vary each number, draw the plot, and describe the slopes."""
    rounds = 1 if settings.quick else 5
    found: dict[str, Points] = {"answers": {}, "features": {}, "heads": {}, "batch": {}, "megapixels": {}}
    for what in ("answers", "features", "heads"):
        for number in VARIED[what]:
            for name, value in head(rounds, **{what: int(number)}):
                found[what].setdefault(name, []).append(value)
    served = prepare("ViT-B/32", settings.cache, GraphKind("portable", "fp32"))
    graph = open_graph(served.graph(tensors.IMAGE_ENCODER_PREFIX), served.target)
    images = np.zeros((max(map(int, VARIED["batch"])), served.image_size, served.image_size, 3), np.uint8)
    found["batch"]["image encoder of ViT-B/32, ms"] = [
        milliseconds(lambda size=size: graph({tensors.IMAGE.name: images[: int(size)]}), rounds)  # type: ignore[misc]
        for size in VARIED["batch"]
    ]
    found["megapixels"]["photo to tensor, ms"] = [
        milliseconds(lambda photo=photo: to_pixels(load_photo(photo), 336), rounds)  # type: ignore[misc]
        for photo in map(draw_photo, VARIED["megapixels"])
    ]
    draw(found, (RESULTS.parent if settings.write else settings.cache) / "growth.png")
    rows = []
    for what, points in found.items():
        for name, values in points.items():
            slope = np.polyfit(np.log(VARIED[what]), np.log(np.maximum(values, 1e-6)), 1)[0]
            span = f"{VARIED[what][0]:,g} to {VARIED[what][-1]:,g}"
            rows.append([what, span, name, in_words(slope), f"{slope:.2f}", f"{values[0]:,.3g} to {values[-1]:,.3g}"])
    text = f"A head of {ANSWERS:,} answers and {FEATURES} features; a step of the fit takes {BATCH} records."
    header = ("varied", "from, to", "measured", "grows", "slope", "from, to")
    return [Table(header, rows, text), "![times and sizes by each number](growth.png)"]


def in_words(slope: float) -> str:
    """How a value grows whose logarithm has this slope."""
    if slope > 1.15:
        return "faster than in proportion"
    if slope > 0.85:
        return "in proportion"
    return "slower than in proportion" if slope > 0.15 else "hardly"


def head(rounds: int, answers: int = ANSWERS, features: int = FEATURES, heads: int = 1) -> Iterator[tuple[str, float]]:
    """Time of a step of the fit and of an export, size of the graph, time to open it and to answer."""
    torch.manual_seed(0)
    built = [GatedHead(features, answers, TYPES) for _ in range(heads)]
    optimiser = torch.optim.Adam([parameter for each in built for parameter in each.parameters()], fused=True)
    text, image = torch.randn(2, BATCH, features)
    targets = Targets(torch.randint(answers, (BATCH,)), torch.randint(TYPES, (BATCH,)), torch.rand(BATCH))

    def step() -> None:
        optimiser.zero_grad()
        for each in built:
            total_loss(each(text, image), targets).backward()
        optimiser.step()

    yield "step of the fit, ms", milliseconds(step, rounds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "head.onnx")
        predictor = ClipEnsemble([Predictor([each.eval().requires_grad_(False) for each in built])])
        yield "export of the head, ms", milliseconds(lambda: write_head(predictor, "0" * 12, path), rounds)
        yield "graph of the head, MB", path.stat().st_size / 1e6
        kind = GraphKind("portable", "fp32")
        yield "opening it, ms", milliseconds(lambda: open_graph(path, kind), rounds)
        graph = open_graph(path, kind)
        feed = {"text_features": text[:1].numpy(), "image_features": image[:1].numpy()}
        yield "one answer of the head, ms", milliseconds(lambda: graph(feed), 4 * rounds)


def milliseconds(action: Callable[[], object], rounds: int) -> float:
    """The median time of ``action``, after a run that warms up."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def draw_photo(megapixels: float) -> bytes:
    """A JPEG of smooth noise, 4 : 3."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width, file = height * 4 // 3, io.BytesIO()
    coarse = np.random.default_rng(0).integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def draw(found: dict[str, Points], path: Path) -> None:
    """One panel for each varied number, both axes logarithmic."""
    figure = Figure(figsize=(3.6 * len(found), 3.6), layout="constrained")
    for axis, (what, points) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for (name, values), marker in zip(points.items(), "osv^x", strict=False):
            axis.plot(VARIED[what], values, marker=marker, label=name)
        axis.set(xlabel=what, xscale="log", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    figure.savefig(path, dpi=100)
