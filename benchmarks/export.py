"""Latency and memory of CLIP's encoders: PyTorch, `torch.onnx.export`, and this project's graphs.

    python -m benchmarks.export                              # everything: an hour on two cores; `make bench-export`
    python -m benchmarks.export --only ViT-L/14@336px --batch 1

Random weights. Every measurement runs in a process of its own, which gives its peak memory (of the host, not of a GPU).
--results keeps what is measured; an interrupted run resumes there. Delete the file to measure again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.architectures import ARCHITECTURES, write_full_size
from benchmarks.machine import peak_gb, rates
from export.clip_graph import write_image_encoder, write_text_encoder
from export.graph_builder import OPSET
from export.publish import EXPORT_FORMAT
from export.targets import GRAPH_KINDS, GraphKind, open_graph
from training.artifacts import staged_file, write_json
from training.backbone import FrozenClip, load_clip, normalise_pixels
from vizwiz_client.contract import tensors, tokenizer

CLIPS = ("ViT-B/32", "ViT-L/14@336px", "RN50x64")
BATCHES = (1, 8)
LARGE = "ViT-L/14@336px"  # where torch.compile and transformers are compared too
SECONDS, MIN_RUNS, MAX_RUNS = 6.0, 3, 50  # of a measurement

BY_NAME = {target.name: target for target in GRAPH_KINDS}
EAGER = ("eager fp32", "eager bf16", "eager fp16")


@dataclass(frozen=True)
class Case:
    """One measurement. ``length`` is that of the questions, 0 for images."""

    clip: str
    system: str  # a target, or one of PyTorch's ways
    batch: int
    length: int

    @property
    def key(self) -> str:
        """Its key among the results."""
        return f"{self.clip} {self.system} {self.batch} {self.length}"


def cases(clips: list[str], batches: list[int], lengths: list[int], cuda: bool) -> list[Case]:
    """Everything to measure; eager fp32, the baseline, comes first."""
    gpu = [name for name, target in BY_NAME.items() if target.device != "cpu"]
    cpu = [name for name, target in BY_NAME.items() if target.precision != "fp16"]
    systems = ["eager fp32", "eager fp16" if cuda else "eager bf16", "naive", *(gpu if cuda else cpu)]
    found = []
    for clip in clips:
        more = ["torch.compile", "transformers"] if clip == LARGE else []
        for batch in batches:
            found += [Case(clip, system, batch, 0) for system in systems + more]
            # the package's own text encoder takes 77 positions, whatever the question's length
            found += [Case(clip, system, batch, tensors.CONTEXT_LENGTH) for system in systems if system in EAGER]
            found += [Case(clip, system, batch, n) for n in lengths for system in systems if system in BY_NAME]
    return found


def example(case: Case) -> Any:
    """Input of a case: uint8 [B, S, S, 3] or int32 [B, T]."""
    generator = np.random.default_rng(0)
    if not case.length:
        size = ARCHITECTURES[case.clip][1]
        return generator.integers(0, 256, (case.batch, size, size, 3), dtype=np.uint8)
    ids = generator.integers(0, tokenizer.START_OF_TEXT, (case.batch, case.length), dtype=np.int32)
    ids[:, 0], ids[:, -1] = tokenizer.START_OF_TEXT, tokenizer.END_OF_TEXT
    return ids


def runner(case: Case, cache: Path, device: torch.device) -> Callable[[], object]:
    """The function to time."""
    inputs = example(case)
    if case.system in BY_NAME:
        graph = open_graph(graph_path(case, cache), BY_NAME[case.system])
        feed = {(tensors.TOKENS if case.length else tensors.IMAGE).name: inputs}
        return lambda: graph(feed)
    if case.system == "naive":
        # fused-fp32: the target in fp32 that runs on a GPU, where there is one
        naive = open_graph(graph_path(case, cache), GraphKind("fused", "fp32"))
        plain = {"image": normalised(inputs).numpy()}
        return lambda: naive(plain)
    if case.system == "transformers":
        theirs, pixels = transformers_model(case.clip).to(device), normalised(inputs)
        return torch.inference_mode()(lambda: theirs.get_image_features(pixels.to(device)))
    model = clip_model(case, cache, device)
    given = torch.from_numpy(inputs) if case.length else normalised(inputs)
    encode = model.encode_text if case.length else model.encode_image
    if case.system == "torch.compile":
        encode = torch.compile(encode)
    reduced = {"eager bf16": torch.bfloat16, "eager fp16": torch.float16}.get(case.system)

    @torch.inference_mode()
    def run() -> object:
        with torch.autocast(device.type, reduced, enabled=reduced is not None):
            return encode(given.to(device)).cpu()  # there and back, as a graph's inputs and outputs go

    return run


def normalised(pixels: Any) -> torch.Tensor:
    """Input of CLIP's own image encoder, fp32 [B, 3, S, S]."""
    return normalise_pixels(torch.from_numpy(pixels)).contiguous()


def clip_model(case: Case, cache: Path, device: torch.device) -> Any:
    """The package's own model, fp32."""
    return load_clip(checkpoint(case.clip, cache)).model.to(device)


def transformers_model(name: str) -> Any:
    """Hugging Face's model of the same size, with its random weights."""
    transformers: Any = importlib.import_module("transformers")  # optional, and typed in some versions only

    embed_dim, image_size, layers, width, patch, text_width, heads, text_layers = ARCHITECTURES[name]
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    vision |= {"num_attention_heads": width // 64, "image_size": image_size, "patch_size": patch}
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_hidden_layers": text_layers}
    text |= {"num_attention_heads": heads}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=embed_dim)
    return transformers.CLIPModel(config).eval()


def checkpoint(name: str, cache: Path) -> Path:
    """Path of a CLIP's checkpoint; it is written if missing."""
    path = cache / name.replace("/", "-") / "clip.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with staged_file(path) as staging:
            write_full_size(name, staging)
    return path


def graph_path(case: Case, cache: Path) -> Path:
    """Path of a case's graph; it changes with the export format."""
    file = f"{case.system}-{'text' if case.length else 'image'}-{EXPORT_FORMAT}.onnx"
    return cache / case.clip.replace("/", "-") / file


def write(case: Case, cache: Path) -> dict[str, float]:
    """Write the graph of a case; returns its time and peak memory."""
    model = load_clip(checkpoint(case.clip, cache))
    started = time.perf_counter()
    with staged_file(graph_path(case, cache)) as staging:
        write_graph_of(model, case, staging)
    return {"export_s": time.perf_counter() - started, "export_peak_gb": peak_gb()}


def write_graph_of(model: FrozenClip, case: Case, path: Path) -> None:
    """Write the graph of a case to ``path``."""
    if case.system == "naive":
        pixels, batch = torch.zeros(2, 3, model.image_size, model.image_size), torch.export.Dim("batch")
        torch.onnx.export(
            model.model.visual,
            (pixels,),
            path,
            input_names=["image"],
            dynamic_shapes=({0: batch},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    else:
        (write_text_encoder if case.length else write_image_encoder)(model, BY_NAME[case.system], path)


def measure(case: Case, cache: Path, device: torch.device) -> dict[str, float]:
    """Time a case in this process."""
    run = runner(case, cache, device)
    run(), run()  # warm up: allocations, late compilation
    times: list[float] = []
    while len(times) < MIN_RUNS or (sum(times) < SECONDS and len(times) < MAX_RUNS):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return {"median_ms": 1e3 * statistics.median(times), "min_ms": 1e3 * min(times), "peak_gb": peak_gb()}


def count(case: Case, cache: Path) -> dict[str, float]:
    """Floating-point operations of one run of the package's own model, at the case's own length."""
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = load_clip(checkpoint(case.clip, cache)).model, example(case)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.encode_text(torch.from_numpy(np.pad(inputs, ((0, 0), (0, 77 - case.length))))) if case.length else (
            model.encode_image(normalised(inputs))
        )
    return {"gflop": counter.get_total_flops() / 1e9 * (case.length / 77 if case.length else 1)}


def child(task: str, case: Case | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run ``task`` in a process of its own; its error is a result too."""
    command = [sys.executable, "-m", "benchmarks.export", "--cache", str(arguments.cache), "--task", task]
    command += ["--device", arguments.device, "--case", json.dumps(case and asdict(case))]
    # ONNX Runtime takes a GPU where it sees one
    env = os.environ if arguments.device == "cuda" else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row(case: Case, results: dict[str, Any]) -> str:
    """One line of the table."""
    name = f"{case.clip:<15}{f'text {case.length}' if case.length else 'image':<9}{case.batch:>3}  {case.system:<15}"
    found = results[case.key]
    if "error" in found:
        return f"{name} not measured: {found['error'][:90]}"
    length = tensors.CONTEXT_LENGTH if case.length else 0
    base = results.get(Case(case.clip, "eager fp32", case.batch, length).key, {}).get("median_ms")
    speed = f"{base / found['median_ms']:6.2f} x" if base else ""
    target = BY_NAME.get(case.system)
    kind = target.precision if target else case.system.split()[-1]
    kind = {"int8": "bf16"}.get(kind, kind if kind in results["rates"] else "fp32")
    gflop = results[Case(case.clip, "flop", case.batch, case.length).key].get("gflop", float("nan"))
    share = gflop / found["median_ms"] * 1e3 / results["rates"][kind]
    return (
        f"{name}{found['median_ms']:>9.1f} {found['min_ms']:>9.1f} {speed:>9}{found['peak_gb']:>8.2f}"
        f"{share:>7.0%} of {kind}"
    )


def run_all(arguments: argparse.Namespace) -> int:
    """Measure every case that has no result yet, and print its line; return the exit status."""
    arguments.cache.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}

    def fill(key: str, task: str, case: Case | None = None) -> None:
        if "error" in results.get(key, {"error": ""}):  # failures are tried again
            results[key] = child(task, case, arguments)
            write_json(arguments.results, results)

    fill("rates", "rates")
    if "error" in results["rates"]:
        raise SystemExit(f"nothing can be measured on {arguments.device}: {results['rates']['error']}")
    print("matrix products, GFLOP/s:", ", ".join(f"{name} {rate:.0f}" for name, rate in results["rates"].items()))
    print(f"{'':<44}{'median ms':>9} {'min ms':>9} {'speed-up':>9}{'GB':>8}  share of the matrix rate")
    for case in cases(arguments.only, arguments.batch, arguments.lengths, arguments.device == "cuda"):
        if arguments.images and case.length:
            continue
        flop = Case(case.clip, "flop", case.batch, case.length)
        fill(flop.key, "flop", flop)
        graph = graph_path(case, arguments.cache)
        if (case.system in BY_NAME or case.system == "naive") and case.key not in results and not graph.exists():
            results.pop(written := f"export {graph.relative_to(arguments.cache)}", None)
            fill(written, "write", case)
        fill(case.key, "measure", case)
        print(row(case, results), flush=True)
    return int(any("error" in found for found in results.values()))


def main() -> int:
    """Measure everything, or run one task as a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=list(CLIPS), help="the CLIPs")
    parser.add_argument("--batch", nargs="+", type=int, default=list(BATCHES), help="batch sizes (default: 1 8)")
    parser.add_argument(
        "--lengths", nargs="+", type=int, choices=tensors.TOKEN_LENGTHS, default=[8, 77], help="positions of questions"
    )
    parser.add_argument("--images", action="store_true", help="omit the text encoders")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench-export"), help="folder of the graphs")
    parser.add_argument(
        "--results", type=Path, help="JSON file of the results (default: in --cache, by device and export format)"
    )
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.results = arguments.results or arguments.cache / f"results-{arguments.device}-{EXPORT_FORMAT}.json"
    if not arguments.task:
        return run_all(arguments)
    device = torch.device(arguments.device)
    case = Case(**arguments.case) if arguments.case else None
    tasks: dict[str, Callable[[], dict[str, float]]] = {"rates": lambda: rates(device)}
    if case is not None:
        tasks["flop"] = lambda: count(case, arguments.cache)
        tasks["write"] = lambda: write(case, arguments.cache)
        tasks["measure"] = lambda: measure(case, arguments.cache, device)
    print(json.dumps(tasks[arguments.task]()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
