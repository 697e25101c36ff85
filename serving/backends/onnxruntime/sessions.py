"""Inference sessions of the backend: ONNX Runtime on CPU or CUDA, OpenVINO on CPU.

Their options have the names and meanings of the native backend's:
https://github.com/triton-inference-server/onnxruntime_backend#other-optimization-options-with-onnx-runtime
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import onnxruntime as ort
import triton_python_backend_utils as triton
from compile_cache import compile_model

# OpenVINO sends telemetry when imported, and stores a client id in the home folder, unless this cannot be imported
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

DIGEST_PARAMETER = "model_sha256"  # as in the contract, which this process may lack: it ignores PYTHONPATH
PRECISION_PARAMETER = "inference_precision"  # likewise
NICE_PARAMETER = "nice"
MAX_NICE = 19

Feed = dict[str, npt.NDArray[Any]]  # input name -> its tensor, the first axis the batch

_CUDA_OPTIONS: dict[str, tuple[str, ...]] = {  # names of the values 0, 1, ...; empty: any number
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "do_copy_in_default_stream": ("0", "1"),
    "gpu_mem_limit": (),
}
_OPENVINO = "openvino"
# CPU flags of int8 products that are added in 32 bits. Other CPUs add pairs of them in 16 bits, which overflow: there
# the rounded values are multiplied in fp32. As in export/targets.py.
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_OPENVINO_TYPES = {"f32": "tensor(float)", "u8": "tensor(uint8)", "i32": "tensor(int32)", "i64": "tensor(int64)"}


class LoadError(Exception):
    """The model cannot be served as its config says."""


def open_session(graph: Path, args: Mapping[str, str], config: Mapping[str, Any]) -> Any:
    """Open ``graph`` on the device that Triton chose for this instance, with the accelerator that ``config`` selects.

    Raises:
        LoadError: the accelerator, or an option, is unknown.
    """
    nice = niceness(config)
    os.nice(nice)  # before the session's threads start, which inherit it
    chosen = providers(args, config)
    if accelerator := cpu_accelerator(config):
        on_gpu = chosen[0] != "CPUExecutionProvider"
        if not on_gpu and importlib.util.find_spec(_OPENVINO) is not None:
            digest = parameter(config, DIGEST_PARAMETER)  # verified by now
            model = args["model_name"], digest
            session = OpenVinoSession(graph, model, accelerator.get("parameters", {}), threads(config), pinned=not nice)
            triton.Logger.log_info(f"{args['model_name']} runs on OpenVINO, in {session.arithmetic}")
            return session
        if not on_gpu:
            triton.Logger.log_warn(
                f"{args['model_name']} runs without OpenVINO, which its config selects, and is slower: OpenVINO is not "
                "installed here (pip install openvino)"
            )
    return open_onnx_runtime(graph, args, config, chosen)


def open_onnx_runtime(
    graph: Path, args: Mapping[str, str], config: Mapping[str, Any], chosen: Sequence[Any]
) -> ort.InferenceSession:
    """Open ``graph`` with the execution providers ``chosen``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads(config)
    # an idle session must not spin: it would take cores from the models that work
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "0" if multiplies_int8() else "1")
    session = ort.InferenceSession(graph, options, providers=chosen)
    if args["model_instance_kind"] == "GPU" and "CUDAExecutionProvider" not in session.get_providers():
        triton.Logger.log_warn(f"{args['model_name']} runs on the CPU: ONNX Runtime cannot use CUDA here")
    return session


def cpu_accelerator(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The CPU accelerator of a model's config, or None.

    Raises:
        LoadError: it is not OpenVINO.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("cpu_execution_accelerator", [])
    for accelerator in accelerators:
        if accelerator["name"] != _OPENVINO:
            raise LoadError(
                f"config.pbtxt has the CPU accelerator {accelerator['name']!r}, expected {_OPENVINO!r}: "
                "remove it, or correct its name"
            )
    return accelerators[0] if accelerators else None


def threads(config: Mapping[str, Any]) -> int:
    """Compute threads of this model: as many as the server allows, or fewer if ``config`` says so."""
    allowed = int(os.environ.get("VIZWIZ_SERVING_THREADS", "0")) or len(os.sched_getaffinity(0))
    return min(allowed, int(parameter(config, "intra_op_thread_count") or 0) or allowed)


def multiplies_int8() -> bool:
    """Whether this CPU multiplies int8 without overflow."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return any(_INT8_FLAGS & set(line.split()) for line in lines if line.startswith("flags"))


def niceness(config: Mapping[str, Any]) -> int:
    """Niceness of this model's process, nice(2): the parameter of ``config``, or 0.

    The threads of a nice process are not pinned to cores: they would wait there while another core is free.

    Raises:
        LoadError: the parameter is out of range.
    """
    value = parameter(config, NICE_PARAMETER) or "0"
    if not value.isdecimal() or int(value) > MAX_NICE:
        raise LoadError(f"config.pbtxt has {NICE_PARAMETER} {value!r}, expected 0 to {MAX_NICE}")
    return int(value)


class Tensor(NamedTuple):
    """An input or output of a graph, with ONNX Runtime's names of types."""

    name: str
    type: str
    shape: list[int | str]


class OpenVinoSession:
    """OpenVINO on the CPU, with the interface of ONNX Runtime's session."""

    def __init__(
        self,
        graph: Path,
        model: tuple[str, str | None],
        parameters: Mapping[str, str],
        thread_count: int,
        pinned: bool,
    ) -> None:
        """Compile or load ``graph``.

        Args:
            graph: the ONNX file.
            model: name of the Triton model, and the SHA-256 of ``graph``, where it is known.
            parameters: of the accelerator in its config.
            thread_count: compute threads.
            pinned: pin them to cores.
        """
        import openvino  # an optional dependency

        core = openvino.Core()
        precision = parameters.get(PRECISION_PARAMETER, "bf16")
        able = precision.upper() in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        hint = self.arithmetic = precision if able else "f32"
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        options |= {"INFERENCE_NUM_THREADS": thread_count, "ENABLE_CPU_PINNING": pinned}
        if not multiplies_int8():
            options["LP_TRANSFORMS_MODE"] = False  # OpenVINO has no documented option
            self.arithmetic += ", int8 graphs too: this CPU lacks VNNI"
        self._model = compile_model(core, graph, *model, options)
        self._request = self._model.create_infer_request()

    def run(self, names: Sequence[str], inputs: Feed) -> list[npt.NDArray[Any]]:
        """Compute the outputs ``names``."""
        results = self._request.infer(inputs, share_inputs=True)
        return [results[name].copy() for name in names]  # the next request overwrites its buffers

    def get_inputs(self) -> list[Tensor]:
        """The graph's inputs."""
        return [_tensor(port) for port in self._model.inputs]

    def get_outputs(self) -> list[Tensor]:
        """The graph's outputs."""
        return [_tensor(port) for port in self._model.outputs]


def _tensor(port: Any) -> Tensor:
    kind = port.element_type.get_type_name()
    shape: list[int | str] = [size.get_length() if size.is_static else "free" for size in port.partial_shape]
    return Tensor(port.any_name, _OPENVINO_TYPES.get(kind, kind), shape)


def providers(args: Mapping[str, str], config: Mapping[str, Any]) -> list[Any]:
    """ONNX Runtime's execution providers of the instance in ``args``, with the options of ``config``."""
    if args["model_instance_kind"] != "GPU" or "CUDAExecutionProvider" not in ort.get_available_providers():
        return ["CPUExecutionProvider"]
    ort.preload_dlls()  # CUDA and cuDNN are in the nvidia-* wheels, where the loader does not look
    # TF32, on by default, has a mantissa of 10 bits: the parity gate measured fp32 without it
    options = {"device_id": args["model_instance_device_id"], "use_tf32": "0", **cuda_options(config)}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


def cuda_options(config: Mapping[str, Any]) -> dict[str, str]:
    """CUDA options of a model's parameters, whose numbers become the names that ONNX Runtime takes.

    Raises:
        LoadError: a value is out of range.
    """
    options = {}
    for key, names in _CUDA_OPTIONS.items():
        if (value := parameter(config, key)) is not None:
            if not value.isdecimal() or (names and int(value) >= len(names)):
                choices = ", ".join(f"{number} ({name})" for number, name in enumerate(names)) or "a whole number"
                raise LoadError(f"config.pbtxt has {key} {value!r}, expected {choices}")
            options[key] = names[int(value)] if names else value
    return options


def parameter(config: Mapping[str, Any], key: str) -> str | None:
    """The value of a parameter of a model, or None."""
    value = config.get("parameters", {}).get(key)
    return None if value is None else str(value["string_value"])
