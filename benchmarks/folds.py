"""Latency of a served head by its number of folds: ten heads in one graph against one.

    python -m benchmarks.folds                  # V = 5,860 answers, D = 768 features, as on VizWiz with ViT-L/14@336px

Random weights. Each round times every graph once, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from export.heads import write_head
from export.runtimes import open_graph
from export.targets import Target
from training.head import GatedHead
from training.predictor import Predictor
from vizwiz_client.contract import tensors


def write_folds(folds: int, features: int, answers: int, path: Path) -> Path:
    """Write a served head of ``folds`` random heads."""
    torch.manual_seed(0)
    heads = [GatedHead(features=features, answers=answers, types=4).eval() for _ in range(folds)]
    write_head(Predictor(heads), "0" * tensors.DIGEST_LENGTH, path)
    return path


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
            write_folds(folds, arguments.features, arguments.answers, Path(folder, f"{folds}.onnx"))
            for folds in arguments.folds
        ]
        graphs = [open_graph(path, Target("portable", "fp32")) for path in paths]
        print(f"{'folds':>5}{'MB':>8}{'batch':>7}{'median ms':>11}{'ratio':>8}{'GB/s of weights':>17}")
        for batch in (1, 8):
            feed = {
                spec.name: generator.standard_normal((batch, arguments.features), dtype=np.float32)
                for spec in (tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES)
            }
            times: list[list[float]] = [[] for _ in graphs]
            for _ in range(arguments.rounds):
                for graph, taken in zip(graphs, times, strict=True):
                    started = time.perf_counter()
                    graph(feed)
                    taken.append(time.perf_counter() - started)
            medians = [statistics.median(taken) for taken in times]
            for folds, path, median in zip(arguments.folds, paths, medians, strict=True):
                size = path.stat().st_size
                print(
                    f"{folds:>5}{size / 1e6:>8.0f}{batch:>7}{1e3 * median:>11.2f}{median / medians[0]:>8.2f}"
                    f"{size / median / 1e9:>17.1f}"
                )


if __name__ == "__main__":
    main()
