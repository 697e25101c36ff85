"""A text graph that takes every question at 77 positions and computes no more of them than its batch needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from vizwiz_client.contract import tensors
from vizwiz_client.contract.tokens import END_OF_TEXT

_USED = "used_tokens"


def shorten_questions(graph: onnx.GraphProto) -> None:
    """Have ``graph`` cut its tokens [B, T] behind the last end token, at one of ``TOKEN_LENGTHS``.

    It is exact for any tokens: the encoder is causal, and each question is read out at its first end token.
    """
    whole = tensors.TOKENS.name
    for node in graph.node:
        node.input[:] = [_USED if name == whole else name for name in node.input]
    lengths = [
        next(length for length in tensors.TOKEN_LENGTHS if length > end) for end in range(tensors.CONTEXT_LENGTH)
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "end_of_text": np.array(END_OF_TEXT, np.int32),
        "length_by_end": np.array(lengths, np.int64),
        "first_token": np.array([0], np.int64),
        "token_axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Equal", [whole, "end_of_text"], ["is_end"]),
        # floats, because CUDA's ArgMax takes no integers; of two ends any will do, a later one cuts less
        helper.make_node("Cast", ["is_end"], ["end_marks"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["end_marks"], ["ends"], axis=1, keepdims=0),
        helper.make_node("ReduceMax", ["ends"], ["last_end"], keepdims=1),
        helper.make_node("Gather", ["length_by_end", "last_end"], ["used_length"]),
        helper.make_node("Slice", [whole, "first_token", "used_length", "token_axis"], [_USED]),
    ]
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
    # a name of its own: ONNX Runtime plans memory for all sizes of one name alike
    graph.input[0].type.tensor_type.shape.dim[1].dim_param = "context"
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
