"""Latency of a served head by its number of folds: ten heads in one graph against one.

    python -m benchmarks.folds                  # V = 5,860 answers, D = 768 features, as on VizWiz with ViT-L/14@336px

Random weights. Each round times every graph once, so that a busy machine disturbs all alike. Beside them, what no
graph can be faster than: reading the largest one's weights once, in 32 bits and in 8, and computing nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from export.graphs import write_graph
from export.heads import ServedHead
from export.runtimes import open_graph
from export.targets import Target
from training.head import GatedHead
from training.predictor import Predictor
from vizwiz_client.contract import tensors


def write_head(folds: int, features: int, answers: int, path: Path) -> Path:
    """Write a served head of ``folds`` random heads."""
    torch.manual_seed(0)
    heads = [GatedHead(features=features, answers=answers, types=4).eval() for _ in range(folds)]
    served = ServedHead(Predictor(heads, None).eval(), "0" * tensors.DIGEST_LENGTH)
    inputs = [tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES]
    write_graph(served, [torch.zeros(2, features) for _ in inputs], inputs, tensors.HEAD_OUTPUTS, path)
    return path


def reading(size: int) -> Callable[[], object]:
    """Read ``size`` bytes with every thread, as the product of one row with so many weights must."""
    weights = torch.ones(size // 8, dtype=torch.float64)
    return weights.sum


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--answers", type=int, default=5860)
    parser.add_argument("--folds", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            write_head(folds, arguments.features, arguments.answers, Path(folder, f"{folds}.onnx"))
            for folds in arguments.folds
        ]
        graphs = [open_graph(path, Target("portable", "fp32")) for path in paths]
        most = max(path.stat().st_size for path in paths)
        reads = {f"read as {8 * size}-bit": reading(most * size // 4) for size in (4, 1)}
        print(f"{'folds':>5}{'MB':>8}{'batch':>7}{'median ms':>11}{'ratio':>8}{'GB/s of weights':>17}")
        for batch in (1, 8):
            feed = {
                spec.name: generator.standard_normal((batch, arguments.features), dtype=np.float32)
                for spec in (tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES)
            }
            sides = [partial(graph, feed) for graph in graphs] + list(reads.values())
            times: list[list[float]] = [[] for _ in sides]
            for _ in range(arguments.rounds):
                for side, taken in zip(sides, times, strict=True):
                    started = time.perf_counter()
                    side()
                    taken.append(time.perf_counter() - started)
            medians = [statistics.median(taken) for taken in times]
            for folds, path, median in zip(arguments.folds, paths, medians, strict=False):
                size = path.stat().st_size
                print(
                    f"{folds:>5}{size / 1e6:>8.0f}{batch:>7}{1e3 * median:>11.2f}{median / medians[0]:>8.2f}"
                    f"{size / median / 1e9:>17.1f}"
                )
            for name, median in zip(reads, medians[len(graphs) :], strict=True):
                print(f"{name:>13}{batch:>7}{1e3 * median:>11.2f}{median / medians[0]:>8.2f}")


if __name__ == "__main__":
    main()
