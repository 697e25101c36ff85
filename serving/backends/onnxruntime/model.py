"""Triton backend ``onnxruntime`` in Python, for a server without the native one.

Triton's Python backend runs this file in one process per model instance, a stub, with the ``config.pbtxt`` that the
native backend reads. A graph that does not match its config is refused. On a CPU the config may select OpenVINO, as for
the native backend: ``cpu_execution_accelerator { name: "openvino" }``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as triton
from sessions import DIGEST_PARAMETER, Feed, LoadError, open_session

LABELS_DIGEST_PARAMETER = "labels_sha256_"
_DIGESTS_FILE = "SHA256SUMS"  # of a model's files

_REMEDY = "publish it again with `python -m export.to_onnx`"
_GRAPH_TYPES = {
    "TYPE_FP32": "tensor(float)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
}


class Request(NamedTuple):
    """Inputs of one request, and the prefix of its error messages."""

    feed: Feed
    prefix: str


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the graph of this version, as Triton's ``args`` describe it.

        Raises:
            LoadError: the file's digest, or the graph's inputs or outputs, differ from the config.
        """
        config = json.loads(args["model_config"])
        graph = Path(args["model_repository"], args["model_version"], config["default_model_filename"])
        check_digests(graph, config)
        self._session = open_session(graph, args, config)
        check_tensors(self._session, config)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run ``requests`` as one batch; return their responses in order, with an error for each that fails."""
        return self._run([_read(request) for request in requests])

    def _run(self, requests: Sequence[Request]) -> list[Any]:
        feeds = [request.feed for request in requests]
        try:
            # no copies for a single request: with cold caches, concatenating and splitting take 0.1 ms each
            batch = (
                feeds[0] if len(feeds) == 1 else {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}
            )
            results = self._session.run(self._outputs, batch)
        except Exception as error:  # ONNX Runtime's errors share no narrower class
            if len(requests) == 1:
                # the message may hold token ids of the question: it goes to the caller, not to the log
                triton.Logger.log_error(f"{requests[0].prefix}{type(error).__name__} of a request")
                return [triton.InferenceResponse(error=triton.TritonError(f"{requests[0].prefix}{error}"))]
            # one of them fails, or shapes differ (Triton batches those under allow_ragged_batch only)
            return [response for request in requests for response in self._run([request])]
        shares = [results] if len(feeds) == 1 else split(results, feeds)
        return [triton.InferenceResponse(list(map(triton.Tensor, self._outputs, share))) for share in shares]


def split(results: Sequence[npt.NDArray[Any]], feeds: Sequence[Feed]) -> list[tuple[npt.NDArray[Any], ...]]:
    """Split the batched ``results`` along the first axis, into the outputs of each feed."""
    ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
    return list(zip(*(np.split(result, ends) for result in results), strict=True))


def _read(request: Any) -> Request:
    prefix = f"[request id: {request.request_id()}] " if request.request_id() else ""
    return Request({tensor.name(): tensor.as_numpy() for tensor in request.inputs()}, prefix)


def check_digests(graph: Path, config: Mapping[str, Any]) -> None:
    """Verify the SHA-256 of the graph, its weights and the label files, where one is recorded.

    Those of the graph and the labels are parameters of the config; that of weights beside the graph is in SHA256SUMS.

    Raises:
        LoadError: a file differs.
        OSError: a file is missing.
    """
    folder = graph.parents[1]
    expected = {}
    for key, value in config["parameters"].items():
        if key == DIGEST_PARAMETER:
            expected[graph] = value["string_value"]
        elif key.startswith(LABELS_DIGEST_PARAMETER):
            expected[folder / key.removeprefix(LABELS_DIGEST_PARAMETER)] = value["string_value"]
    weights = graph.with_name(f"{graph.name}.data")  # of a graph over the limit of one file
    if weights.exists():
        for digest, _, name in (line.partition("  ") for line in (folder / _DIGESTS_FILE).read_text().splitlines()):
            if folder / name == weights:
                expected[weights] = digest
    for file, digest in expected.items():
        if (got := sha256(file)) != digest:
            raise LoadError(f"{file} has SHA-256 {got}, expected {digest}: the file is damaged or replaced; {_REMEDY}")


def sha256(path: Path) -> str:
    """A file's SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_tensors(session: Any, config: Mapping[str, Any]) -> None:
    """Check that the config and the graph have the same inputs and outputs: names, types, dimensions.

    Raises:
        LoadError: they differ; the message lists all differences.
    """
    if config["max_batch_size"] < 1:
        raise LoadError(f"config.pbtxt has max_batch_size {config['max_batch_size']}, expected at least 1: {_REMEDY}")
    differences = compare("input", config["input"], session.get_inputs())
    differences += compare("output", config["output"], session.get_outputs())
    if differences:
        raise LoadError(f"config.pbtxt does not match model.onnx: {'; '.join(differences)}; {_REMEDY}")


def compare(what: str, configured: Sequence[Mapping[str, Any]], in_graph: Sequence[Any]) -> list[str]:
    """Describe each tensor that differs between the config and the graph; -1 is a dynamic dimension."""
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
