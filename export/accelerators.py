"""What a model's configuration asks for on the device that its target is for; elsewhere it is ignored.

Names and meanings: https://github.com/triton-inference-server/onnxruntime_backend#onnx-runtime-with-tensorrt-optimization.
CUDA's options are parameters of the model, not of an accelerator: those the native backend would overwrite. No GPU was
at hand, so none of the numbers is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from export.targets import OPENVINO, Target
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tensors import TensorSpec

TENSORRT = "tensorrt"  # Triton's name of the accelerator
ENGINE_CACHE = "/tmp/vizwiz-tensorrt"  # Triton makes it; engines take minutes to build: mount a volume there
USUAL_BATCH = 8  # what TensorRT makes its kernels fast for

_GIB = 1 << 30
_CUDA = {
    "cudnn_conv_algo_search": 1,  # HEURISTIC: the default, EXHAUSTIVE, tries every algorithm again for each batch size
    "arena_extend_strategy": 1,  # kSameAsRequested: the default doubles what it takes and never gives it back
    "gpu_mem_limit": 8 * _GIB,  # of one model, weights included
    "do_copy_in_default_stream": 1,
}


def accelerate(config: Any, target: Target, inputs: Mapping[TensorSpec, Sequence[int]]) -> None:
    """Have ``config`` ask for what makes a graph that was written for ``target`` fast.

    Args:
        inputs: each with its dimensions, batch left out.
    """
    accelerators = config.optimization.execution_accelerators
    if target.accelerator is not None:
        # the native backend reads the name alone: OpenVINO there chooses the precision itself
        accelerator = accelerators.cpu_execution_accelerator.add(name=OPENVINO)
        accelerator.parameters[tensors.PRECISION_PARAMETER] = target.hint
    if target.device == "tensorrt":
        options = tensorrt_options(config.name, inputs)
        accelerators.gpu_execution_accelerator.add(name=TENSORRT).parameters.update(options)
    bound_on_cuda(config, target)  # which computes what TensorRT cannot


def bound_on_cuda(config: Any, target: Target) -> None:
    """Have ``config`` say how ONNX Runtime may use a GPU, where ``target`` is for one."""
    if target.device in ("cuda", "tensorrt"):
        for key, value in _CUDA.items():
            config.parameters[key].string_value = str(value)


def tensorrt_options(name: str, inputs: Mapping[TensorSpec, Sequence[int]]) -> dict[str, str]:
    """TensorRT's options for the model ``name``: 16 bits, kept engines, one engine for every batch size."""

    def shapes(batch: int) -> str:
        return ",".join(f"{spec.name}:{'x'.join(map(str, (batch, *dims)))}" for spec, dims in inputs.items())

    return {
        "precision_mode": "FP16",
        "trt_layer_norm_fp32_fallback": "1",
        "max_workspace_size_bytes": str(_GIB),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": ENGINE_CACHE,
        "trt_engine_cache_prefix": name,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": ENGINE_CACHE,
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(USUAL_BATCH),
        "trt_profile_max_shapes": shapes(tensors.MAX_BATCH_SIZE),
    }
