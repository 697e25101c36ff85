"""A text graph takes every question at 77 positions, and computes no more of them than its batch needs."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from export.graphs import GraphBuilder
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tokenizer import END_OF_TEXT


def shorten_questions(graph: GraphBuilder, tokens: str) -> str:
    """Cut ``tokens`` int32 [B, 77] behind the last end token, at one of ``TOKEN_LENGTHS``.

    It is exact for any tokens: the encoder is causal, and each question is read out at its first end token.
    """
    lengths = [
        next(length for length in tensors.TOKEN_LENGTHS if length > end) for end in range(tensors.CONTEXT_LENGTH)
    ]
    is_end = graph.add("Equal", tokens, graph.constant(END_OF_TEXT, np.int32))
    # floats, because CUDA's ArgMax takes no integers; of two ends any will do, a later one cuts less
    ends = graph.add("ArgMax", graph.add("Cast", is_end, to=TensorProto.FLOAT), axis=1, keepdims=0)
    used = graph.add("Gather", graph.constant(lengths), graph.add("ReduceMax", ends, keepdims=1))
    return graph.add("Slice", tokens, graph.constant([0]), used, graph.constant([1]))
