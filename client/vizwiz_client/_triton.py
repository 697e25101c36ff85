"""The wire: one gRPC channel to Triton, and Triton's errors as this package's.

Imported with the first request only, because the gRPC stack takes longer to load than everything else together.
"""

from __future__ import annotations

import http.client
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from vizwiz_client.contract import tensors
from vizwiz_client.contract.errors import DeadlineExceeded, Overloaded, ServerError, ServerUnavailable, WrongServer

# These replace tritonclient's own, so its message limits are among them.
# https://grpc.github.io/grpc/core/group__grpc__arg__keys.html
_CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_reconnect_backoff_ms", 2_000),  # a server that was away is found again in seconds, not in two minutes
    ("grpc.client_idle_timeout_ms", 60_000),  # an idle connection is closed before a network forgets it in silence
]
_QUEUE_TEXTS = ("Exceeds maximum queue size", "Request timeout expired")  # Triton's, both with status UNAVAILABLE


class Triton:
    """One connection; safe to share between threads. ``timeout_s`` bounds every call."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._client = InferenceServerClient(url, channel_args=_CHANNEL_ARGUMENTS)

    def close(self) -> None:
        """Close the channel; calls in flight fail."""
        self._client.close()

    def ensemble_config(self) -> Any:
        """Return the served ensemble's ``ModelConfig`` message."""
        try:
            return self._client.get_model_config(tensors.ENSEMBLE, client_timeout=self._timeout_s).config
        except InferenceServerException as error:
            self._raise(error)

    def infer(self, image: npt.NDArray[np.uint8], tokens: npt.NDArray[np.int32], top: int) -> Any:
        """Send uint8 [B, S, S, 3] and int32 [B, T]; return tritonclient's ``InferResult`` with the head's outputs.

        ``answer`` [B, top] and ``answer_type`` [B, 1] come as text, ``b"probability:index:label"``, best first:
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
        try:
            return self._client.infer(tensors.ENSEMBLE, inputs, outputs=outputs, client_timeout=self._timeout_s)
        except InferenceServerException as error:
            self._raise(error)

    def _raise(self, error: InferenceServerException) -> NoReturn:
        status = (error.status() or "").removeprefix("StatusCode.")
        message = error.message()
        kind, text = ServerError, f"the server at {self._url} failed"
        if status == "UNAVAILABLE" and any(queue in message for queue in _QUEUE_TEXTS):
            kind, text = Overloaded, f"the server at {self._url} has too many requests waiting; ask again in a moment"
        elif status == "UNAVAILABLE" and _speaks_http(self._url):
            kind = WrongServer
            text = (
                f"{self._url} speaks HTTP, not gRPC; give Triton's gRPC port (8001 by default, 8000 is its HTTP port)"
            )
        elif status == "UNAVAILABLE":
            kind = ServerUnavailable
            text = f"no server is ready at {self._url}; start it with `python -m serving`, or give its address"
        elif status == "DEADLINE_EXCEEDED":
            kind = DeadlineExceeded
            text = f"no answer from {self._url} within {self._timeout_s:g} s; allow more time, or send less at once"
        elif status == "UNIMPLEMENTED":
            kind, text = WrongServer, f"the gRPC server at {self._url} is not Triton; give Triton's address"
        elif status == "NOT_FOUND":
            kind = WrongServer
            text = f"Triton at {self._url} does not serve {tensors.ENSEMBLE!r}; export a model to its repository first"
        elif status == "INVALID_ARGUMENT":
            kind = WrongServer
            text = f"Triton at {self._url} refused the request; was its model replaced by one of another shape?"
        raise kind(f"{text} ({status}: {message})") from error


def _speaks_http(url: str) -> bool:
    """Ask the address itself: gRPC words this differently for each server, and some words fit a failing proxy too."""
    connection = http.client.HTTPConnection(url, timeout=1)
    try:
        connection.request("GET", "/v2/health/live")
        connection.getresponse().close()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True
