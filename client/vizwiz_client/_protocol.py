"""What goes over the wire, for either of tritonclient's clients: channel, request, reply.

Imported with the first request only, because the gRPC stack takes longer to load than everything else together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, InferInput, InferRequestedOutput

from vizwiz_client._answer import Candidate
from vizwiz_client._proxy import is_loopback
from vizwiz_client._settings import Settings
from vizwiz_client.contract import tensors
from vizwiz_client.contract.errors import ContractMismatch

# These replace tritonclient's own, so its message limits are among them.
# https://grpc.github.io/grpc/core/group__grpc__arg__keys.html
_CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.initial_reconnect_backoff_ms", 100),  # or a retry would meet the last attempt's failure, not the server
    ("grpc.max_reconnect_backoff_ms", 2_000),  # a server that was away is found again in seconds, not in two minutes
    ("grpc.client_idle_timeout_ms", 60_000),  # an idle connection is closed before a network forgets it in silence
    ("grpc.lb_policy_name", "round_robin"),  # over all addresses of a name, such as a headless Service
    ("grpc.use_local_subchannel_pool", 1),  # each client has its own connection, whatever another one waits for
]


def connection_arguments(settings: Settings) -> dict[str, Any]:
    """Arguments of tritonclient's ``InferenceServerClient``, synchronous or not."""
    import grpc

    proxy = [("grpc.enable_http_proxy", 0)] if is_loopback(settings.url) else []  # it would look on its own machine
    arguments: dict[str, Any] = {"url": settings.url, "channel_args": _CHANNEL_ARGUMENTS + proxy}
    if settings.tls is not None:
        arguments["creds"] = grpc.ssl_channel_credentials(*settings.tls.contents)
    return arguments


def infer_arguments(image: npt.NDArray[np.uint8], tokens: npt.NDArray[np.int32], top: int) -> dict[str, Any]:
    """Arguments of ``infer`` that ask about uint8 [B, S, S, 3] and int32 [B, T], uncompressed.

    ``answer`` [B, top] and ``answer_type`` [B, 1] come back as text, ``b"probability:index:label"``, best first:
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
    """
    inputs = []
    for spec, array in ((tensors.IMAGE, image), (tensors.TOKENS, tokens)):
        inputs.append(InferInput(spec.name, list(array.shape), spec.datatype))
        inputs[-1].set_data_from_numpy(array)
    outputs = [
        InferRequestedOutput(tensors.ANSWER.name, class_count=top),
        InferRequestedOutput(tensors.ANSWER_TYPE.name, class_count=1),
        InferRequestedOutput(tensors.ANSWERABLE.name),
        InferRequestedOutput(tensors.HEAD_ID.name),
    ]
    return {"model_name": tensors.ENSEMBLE, "inputs": inputs, "outputs": outputs}


def read_reply(result: Any, url: str) -> list[dict[str, Any]]:
    """The model's part of each :class:`Answer`, from tritonclient's ``InferResult`` of a batch.

    Raises ContractMismatch: the classes have no labels.
    """
    answers, types, answerable, heads = (result.as_numpy(spec.name) for spec in tensors.HEAD_OUTPUTS)
    return [
        {
            "candidates": tuple(_candidate(value, url) for value in answers[row]),
            "answer_type": _candidate(types[row][0], url).answer,
            "answerable": float(answerable[row][0]),
            "head_id": tensors.head_digest(int(heads[row][0])),
        }
        for row in range(len(answers))
    ]


def _candidate(value: bytes, url: str) -> Candidate:
    """Read ``b"probability:index:label"``; the label may hold colons."""
    confidence, _, *label = value.decode().split(":", 2)
    if not label:
        raise ContractMismatch(
            f"the server at {url} sends answers without labels, this client reads 'probability:index:label'; export "
            "its model again"
        )
    return Candidate(label[0], float(confidence))
