"""Triton's backend ``onnxruntime``, for a server that lacks the native one.

Triton runs this file in a process per model (its Python backend's stub), under the same ``config.pbtxt`` that the
native backend reads. A load is refused when the graph is not the one that the config was written for. On a CPU the
config may ask for OpenVINO, as it may of the native backend: ``cpu_execution_accelerator { name: "openvino" }``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import triton_python_backend_utils as triton

# OpenVINO, when imported, reports to its maker and keeps a client id in the home folder, unless this cannot be imported
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

LABELS_DIGEST_PARAMETER = "labels_sha256_"
MODEL_DIGEST_PARAMETER = "model_sha256"  # as in the contract, which this process may not have (it ignores PYTHONPATH)
PRECISION_PARAMETER = "inference_precision"  # likewise

Feed = dict[str, npt.NDArray[Any]]  # input name -> its tensor, the first axis the batch

_REMEDY = "publish it again with `python -m export.to_onnx`"
_OPENVINO = "openvino"
_OPENVINO_TYPES = {"f32": "tensor(float)", "u8": "tensor(uint8)", "i32": "tensor(int32)", "i64": "tensor(int64)"}
_GRAPH_TYPES = {
    "TYPE_FP32": "tensor(float)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
}


class LoadError(Exception):
    """The model cannot be served as its config says."""


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the graph of this version, as Triton's ``args`` describe it.

        Raises:
            LoadError: the file's digest, or the graph's inputs and outputs, are not those of the config.
        """
        config = json.loads(args["model_config"])
        graph = Path(args["model_repository"], args["model_version"], config["default_model_filename"])
        check_digests(graph, config)
        self._session = open_session(graph, args, config)
        check_tensors(self._session, config)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer ``requests``, in their order, as one batch; each that cannot be answered gets an error of its own."""
        return self._answer([{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests])

    def _answer(self, feeds: Sequence[Feed]) -> list[Any]:
        try:
            batch = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
            results = self._session.run(self._outputs, batch)
        except Exception as error:  # ONNX Runtime's errors share no narrower class
            if len(feeds) == 1:
                return [triton.InferenceResponse(error=triton.TritonError(str(error)))]
            # one at fault, or shapes that differ (Triton batches those under allow_ragged_batch only)
            return [response for feed in feeds for response in self._answer([feed])]
        ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
        shares = zip(*(np.split(result, ends) for result in results), strict=True)
        return [triton.InferenceResponse(list(map(triton.Tensor, self._outputs, share))) for share in shares]


def open_session(graph: Path, args: Mapping[str, str], config: Mapping[str, Any]) -> Any:
    """Open ``graph`` on the device that Triton chose for this instance, with the accelerator that ``config`` asks for.

    Raises:
        LoadError: an accelerator that is not known.
    """
    chosen = providers(args)
    if accelerator := cpu_accelerator(config):
        on_gpu = chosen[0] != "CPUExecutionProvider"
        if not on_gpu and importlib.util.find_spec(_OPENVINO) is not None:
            session = OpenVinoSession(graph, accelerator.get("parameters", {}).get(PRECISION_PARAMETER, "bf16"))
            triton.Logger.log_info(f"{args['model_name']} runs on OpenVINO, in {session.precision}")
            return session
        if not on_gpu:
            triton.Logger.log_warn(
                f"{args['model_name']} runs without OpenVINO, which its config asks for, and is slower so: it is not "
                "installed here (pip install openvino)"
            )
    return open_onnx_runtime(graph, args, chosen)


def open_onnx_runtime(graph: Path, args: Mapping[str, str], chosen: Sequence[Any]) -> ort.InferenceSession:
    """Open ``graph`` with the execution providers ``chosen``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads()
    # an idle session that spins takes the cores from the models that work
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(graph, options, providers=chosen)
    if args["model_instance_kind"] == "GPU" and "CUDAExecutionProvider" not in session.get_providers():
        triton.Logger.log_warn(f"{args['model_name']} runs on the CPU: ONNX Runtime cannot use CUDA here")
    return session


def cpu_accelerator(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The CPU accelerator in a model's config, which can only be OpenVINO, or None.

    Raises:
        LoadError: another one.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("cpu_execution_accelerator", [])
    for accelerator in accelerators:
        if accelerator["name"] != _OPENVINO:
            raise LoadError(
                f"config.pbtxt asks for the CPU accelerator {accelerator['name']!r}, the only one is {_OPENVINO!r}: "
                "remove it, or correct its name"
            )
    return accelerators[0] if accelerators else None


def threads() -> int:
    """Threads that this model may compute with; 0 is one per core."""
    return int(os.environ.get("VIZWIZ_SERVING_THREADS", "0"))


class Tensor(NamedTuple):
    """An input or output of a graph, as ONNX Runtime describes them."""

    name: str
    type: str
    shape: list[int | str]


class OpenVinoSession:
    """OpenVINO on the CPU, with the methods of ONNX Runtime's session that are used here."""

    def __init__(self, graph: Path, precision: str) -> None:
        """Compile ``graph``; ``precision`` is the least that it may compute in, as far as the CPU can."""
        import openvino  # needed for models that ask for it alone

        core = openvino.Core()
        able = precision.upper() in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = precision if able else "f32"
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.precision}
        self._model = core.compile_model(graph, "CPU", {**options, "INFERENCE_NUM_THREADS": threads()})
        self._request = self._model.create_infer_request()

    def run(self, names: Sequence[str], inputs: Feed) -> list[npt.NDArray[Any]]:
        """Compute the outputs ``names``."""
        results = self._request.infer(inputs, share_inputs=True)
        return [results[name].copy() for name in names]  # the request's own memory is written again by the next

    def get_inputs(self) -> list[Tensor]:
        """Describe the inputs."""
        return [_tensor(port) for port in self._model.inputs]

    def get_outputs(self) -> list[Tensor]:
        """Describe the outputs."""
        return [_tensor(port) for port in self._model.outputs]


def _tensor(port: Any) -> Tensor:
    kind = port.element_type.get_type_name()
    shape: list[int | str] = [size.get_length() if size.is_static else "free" for size in port.partial_shape]
    return Tensor(port.any_name, _OPENVINO_TYPES.get(kind, kind), shape)


def providers(args: Mapping[str, str]) -> list[Any]:
    """ONNX Runtime's execution providers for the instance that ``args`` describe."""
    if args["model_instance_kind"] != "GPU" or "CUDAExecutionProvider" not in ort.get_available_providers():
        return ["CPUExecutionProvider"]
    ort.preload_dlls()  # CUDA and cuDNN lie in the nvidia-* wheels, where the loader does not look
    return [("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]}), "CPUExecutionProvider"]


def check_digests(graph: Path, config: Mapping[str, Any]) -> None:
    """Check the SHA-256 of the graph and of the label files against those in the config's parameters, where given.

    Raises:
        LoadError: a file is missing or another one.
    """
    parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
    files = {MODEL_DIGEST_PARAMETER: graph}
    for key in parameters:
        if key.startswith(LABELS_DIGEST_PARAMETER):
            files[key] = graph.parents[1] / key.removeprefix(LABELS_DIGEST_PARAMETER)
    for key, file in files.items():
        expected, got = parameters.get(key), sha256(file)
        if expected is not None and got != expected:
            raise LoadError(
                f"{file} has SHA-256 {got}, its config.pbtxt says {expected}: the file is damaged or another one; "
                f"{_REMEDY}"
            )


def sha256(path: Path) -> str:
    """A file's SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_tensors(session: Any, config: Mapping[str, Any]) -> None:
    """Check that the config's inputs and outputs are the graph's, by name, type and dimensions.

    Raises:
        LoadError: listing every one that is not.
    """
    if config["max_batch_size"] < 1:
        raise LoadError(f"config.pbtxt has max_batch_size {config['max_batch_size']}, expected at least 1: {_REMEDY}")
    differences = compare("input", config["input"], session.get_inputs())
    differences += compare("output", config["output"], session.get_outputs())
    if differences:
        raise LoadError(f"config.pbtxt does not describe model.onnx: {'; '.join(differences)}; {_REMEDY}")


def compare(what: str, configured: Sequence[Mapping[str, Any]], in_graph: Sequence[Any]) -> list[str]:
    """Describe each tensor that the config and the graph do not agree on; -1 is a length that is free."""
    config = {tensor["name"]: (_GRAPH_TYPES.get(tensor["data_type"]), [-1, *tensor["dims"]]) for tensor in configured}
    graph = {
        tensor.name: (tensor.type, [size if isinstance(size, int) else -1 for size in tensor.shape])
        for tensor in in_graph
    }
    return [
        f"{what} {name!r} is {_describe(config.get(name))} in the config and {_describe(graph.get(name))} in the graph"
        for name in sorted(config.keys() | graph.keys())
        if not _fits(config.get(name), graph.get(name))
    ]


def _fits(config: tuple[Any, list[int]] | None, graph: tuple[Any, list[int]] | None) -> bool:
    if config is None or graph is None:
        return False
    same_type, same_rank = config[0] == graph[0], len(config[1]) == len(graph[1])
    return same_type and same_rank and all(size in (-1, dim) for dim, size in zip(config[1], graph[1], strict=True))


def _describe(tensor: tuple[Any, list[int]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} {tensor[1]}"
