"""int8 of ViT-B/32's image encoder: our calibration beside NNCF's (`nncf.quantize`), error and latency.

    pip install nncf==3.4.0 && OMP_NUM_THREADS=1 python -m benchmarks.nncf      # 5 minutes

Random weights. NNCF calibrates on the same photos, with SmoothQuant: once with its defaults, once tuned to our scheme
(no bias correction, convolutions in fp32, SmoothQuant's alpha at 0.5). Runs are interleaved to cancel noise.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from benchmarks.architectures import write_full_size
from export.clip_graph import write_image_encoder
from export.comparison import TOLERANCES, compare_encoder
from export.parity import encode_images
from export.parity_inputs import calibration_photos, draw_golden_photo, drawn_inputs
from export.targets import Target, execution, open_graph
from training.backbone import load_clip

os.environ["NNCF_DISABLE_TELEMETRY"] = "1"  # read on import
import nncf

INT8 = Target("portable", "int8")
ROUNDS = {1: 25, 8: 12}  # by batch size
TUNED = {
    "ignored_scope": nncf.IgnoredScope(types=["Conv"]),
    "advanced_parameters": nncf.AdvancedQuantizationParameters(
        disable_bias_correction=True, smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=0.5)
    ),
}


def main() -> None:
    """Print error and latency of each graph."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        clip = load_clip(write_full_size("ViT-B/32", place / "clip.pt"))
        write_image_encoder(clip, INT8, place / "ours.onnx")
        write_image_encoder(clip, Target("portable", "fp32"), place / "fp32.onnx")
        photos = nncf.Dataset(list(calibration_photos(clip.image_size)), lambda pixels: {"image": pixels})
        for name, options in (("NNCF", {}), ("NNCF tuned", TUNED)):
            started = time.perf_counter()
            model = nncf.quantize(
                onnx.load(place / "fp32.onnx"), photos, model_type=nncf.ModelType.TRANSFORMER, **options
            )
            onnx.save_model(model, place / f"{name}.onnx")
            print(f"{name}: calibrated in {time.perf_counter() - started:.0f} s")
        graphs = {name: open_graph(place / f"{name}.onnx", INT8) for name in ("ours", "NNCF", "NNCF tuned")}
    print(execution(INT8))
    inputs = drawn_inputs(clip.image_size, draw_golden_photo())
    for name, graph in graphs.items():
        row = compare_encoder("drawn", "image_features", encode_images(graph, clip, inputs))
        print(f"{name}: {row.describe(TOLERANCES['int8'])}")
    for batch, rounds in ROUNDS.items():
        pixels = np.repeat(inputs.pixels[:1], batch, axis=0)
        times: dict[str, list[float]] = {name: [] for name in graphs}
        for _ in range(rounds):
            for name, graph in graphs.items():
                started = time.perf_counter()
                graph({"image": pixels})
                times[name].append(1e3 * (time.perf_counter() - started))
        for name, each in times.items():
            print(f"{name}: batch {batch}, median {statistics.median(each):.1f} ms, least {min(each):.1f} ms")


if __name__ == "__main__":
    main()
