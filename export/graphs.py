"""PyTorch modules to ONNX graphs with the contract's names, shapes and types."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from vizwiz_client.contract.tensors import TensorSpec

OPSET = 20  # ai.onnx: read by ONNX Runtime 1.17 and later
_BATCH = "batch"


class GraphError(Exception):
    """An exported graph whose inputs or outputs are not the contract's."""


def write_graph(
    module: nn.Module,
    example: Sequence[Tensor],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    path: Path,
    *,
    free_length: bool = False,
) -> None:
    """Export ``module`` to ``path``, batch axis free.

    Args:
        example: one tensor per input, batch of at least 2: a size of 1 would be taken for a constant.
        free_length: the second axis of the first input is free too.

    Raises:
        GraphError: the graph that came out does not have the contract's names and types.
    """
    batch = torch.export.Dim(_BATCH)
    axes: list[dict[int, Any]] = [{0: batch} for _ in example]
    if free_length:
        axes[0][1] = torch.export.Dim("length", max=example[0].shape[1])
    with warnings.catch_warnings():
        # two inputs share the batch axis, as they should
        warnings.filterwarnings("ignore", message=".*shares the same shape constraints")
        torch.onnx.export(
            module.eval(),
            tuple(example),
            path,
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_shapes=tuple(axes),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,  # one file, one digest; every OpenAI CLIP fits protobuf's 2 GB
            verbose=False,
        )
    _check_signature(path, inputs, outputs)


def _check_signature(path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    graph = onnx.load(path, load_external_data=False).graph
    for given, expected in ((graph.input, inputs), (graph.output, outputs)):
        got = [(value.name, onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)) for value in given]
        want = [(spec.name, spec.dtype) for spec in expected]
        if got != want:
            raise GraphError(f"{path.name}: the graph has {got}, the contract says {want}")
