"""What CLIPs of each size in docs/clips.md cost to serve: one image and one question, by the graphs that export writes.

    python -m benchmarks costs

A graph is written, measured in a process of its own, and deleted: ViT-H/14 in fp32 has 4 GB.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.architectures import random_clip
from benchmarks.encoders import Case, in_a_process
from benchmarks.report import Section, Settings, Table, kinds_here
from export.clip_graph import write_image_encoder, write_text_encoder
from export.targets import GraphKind
from training.backbone import FrozenClip

CLIPS = (  # one of each size; the first is the unit
    "ViT-L/14@336px",
    "RN50x64",
    "open_clip:ViT-B-16-quickgelu",
    "open_clip:ViT-L-14",
    "open_clip:ViT-H-14",
    "open_clip:ViT-H-14-378-quickgelu",
)
POSITIONS = 8  # token ids of a question of six words
SECONDS = 3.0  # of a measurement


def run(settings: Settings) -> Section:
    """Measure each CLIP in each precision that this machine multiplies."""
    kinds, rows = kinds_here(), []
    unit: dict[GraphKind, float] = {}
    with tempfile.TemporaryDirectory(dir=settings.cache) as folder:
        for name in ("ViT-B/32",) if settings.quick else CLIPS:
            row, clip = [f"`{name}`"], random_clip(name)
            for kind in kinds:
                image, text, gigabytes, peak = _cost(clip, kind, Path(folder), settings)
                ratio = (image + text) / unit.setdefault(kind, image + text)
                row += [f"{ratio:.2f} x", f"{image:,.0f} + {text:,.0f} ms", f"{gigabytes:.1f}, {peak:.1f} GB"]
            rows.append(row)
            print(" | ".join(row), file=sys.stderr, flush=True)
    header = ["CLIP"]
    for kind in kinds:
        header += [f"{kind.precision}: of the first CLIP", "image + question", "graphs, peak memory of both processes"]
    return [
        Table(header, rows, "Random weights, batch 1, medians. In int8, a ResNet's image encoder is not quantised.")
    ]


def _cost(clip: FrozenClip, kind: GraphKind, folder: Path, settings: Settings) -> tuple[float, float, float, float]:
    """Median ms of an image and of a question, size of both graphs, and the peak memory of both, in GB."""
    times, gigabytes, memory = [], 0.0, 0.0
    for write, positions in ((write_image_encoder, 0), (write_text_encoder, POSITIONS)):
        with tempfile.TemporaryDirectory(dir=folder) as own:
            graph = Path(own, "model.onnx")
            write(clip, kind, graph)
            gigabytes += sum(file.stat().st_size for file in Path(own).iterdir()) / 1e9
            seconds = 0.5 if settings.quick else SECONDS
            case = Case(clip.source, kind.name, str(graph), clip.image_size, 1, positions, "cpu", seconds)
            found = in_a_process("cpu", json.dumps(asdict(case)))
        times.append(found["median_ms"])
        memory += found["peak_gb"]
    return times[0], times[1], gigabytes, memory
