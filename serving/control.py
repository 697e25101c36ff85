"""Model control over gRPC: what `serving.swap` asks of a running Triton, embedded or not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, InferenceServerClient
from tritonclient.utils import InferenceServerException

from serving.admin import GRPC_HEADER, KEY_VARIABLE
from serving.errors import ServingError

LOAD_S = 600  # a large CLIP's file takes a while to read and optimise
ASK_S = 120  # one question, to a model that has never answered
UNLOAD_S = 60  # requests that a model has taken are answered first
# These replace tritonclient's own arguments, so its message limits are among them. A proxy of the environment is not
# asked: its localhost is another machine.
DIRECT_CHANNEL = [
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.enable_http_proxy", 0),
]

_CALL_S = 10
_PROBE_INTERVAL_S = 0.1
_RESTRICTED = "This protocol is restricted"  # what Triton says to who lacks the key


class Control:
    """One connection to the Triton at ``url`` (host:port, its gRPC port); ``key`` may be None where none is asked for.

    Every method raises ServingError when the server refuses or does not answer in time.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._headers = {GRPC_HEADER: key} if key else {}
        self._client = InferenceServerClient(url, channel_args=DIRECT_CHANNEL)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def states(self) -> dict[str, str]:
        """Model name -> "READY", "LOADING", "UNLOADING" or "UNAVAILABLE"; "" when it was never loaded."""
        index = self._call(self._client.get_model_repository_index, headers=self._headers, client_timeout=_CALL_S)
        return {model.name: model.state for model in index.models}

    def load(self, model: str, config: Any = None) -> None:
        """Load ``model``, under the message ``config`` where it is not to be the one of its repository."""
        text = (
            None if config is None else json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))
        )
        self._call(self._client.load_model, model, headers=self._headers, config=text, client_timeout=LOAD_S)

    def unload(self, models: Sequence[str]) -> list[str]:
        """Unload ``models`` and return those that are still answering requests when the patience for that ends."""
        for model in models:
            self._call(self._client.unload_model, model, headers=self._headers, client_timeout=_CALL_S)
        deadline = time.monotonic() + UNLOAD_S
        remaining = list(models)
        while remaining and time.monotonic() < deadline:
            states = self.states()
            remaining = [model for model in remaining if states.get(model) == "UNLOADING"]
            time.sleep(_PROBE_INTERVAL_S if remaining else 0)
        return remaining

    def config(self, model: str) -> Any:
        """The configuration that ``model``, which is ready, is served under now."""
        return self._call(self._client.get_model_config, model, client_timeout=_CALL_S).config

    def ask(self, model: str, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> Any:
        """Return what ``model`` answers to ``inputs``, as tritonclient's ``InferResult``."""
        return self._call(self._client.infer, model, inputs, outputs=outputs, client_timeout=ASK_S)

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except InferenceServerException as error:
            text = error.message().strip()
            if _RESTRICTED in text:
                text = (
                    f"it asks for {'another' if self._headers else 'a'} key: give it in the environment variable "
                    f"{KEY_VARIABLE}"
                )
            raise ServingError(f"the server at {self._url}: {text}") from error
