"""The wire protocol: gRPC channel, inference request and reply, model configuration.

Imported with the first request only, because the gRPC stack takes longer to import than everything else together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grpc
import numpy.typing as npt
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, InferInput, InferRequestedOutput, model_config_pb2
from tritonclient.utils import np_to_triton_dtype

from vizwiz_client._failures import is_loopback
from vizwiz_client._results import Candidate, ModelInfo
from vizwiz_client._settings import Settings
from vizwiz_client.contract import tensors
from vizwiz_client.contract.errors import ContractMismatch
from vizwiz_client.contract.tensors import TensorSpec
from vizwiz_client.contract.wording import UNANSWERABLE_LABELS, Thresholds

# These replace tritonclient's own arguments, so the message sizes are repeated.
# https://grpc.github.io/grpc/core/group__grpc__arg__keys.html
_CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.initial_reconnect_backoff_ms", 100),  # shorter than the first retry's delay
    ("grpc.max_reconnect_backoff_ms", 2_000),  # reconnect within seconds of a restart; the default is two minutes
    ("grpc.client_idle_timeout_ms", 60_000),  # before a NAT or firewall drops an idle connection silently
    ("grpc.lb_policy_name", "round_robin"),  # over all addresses of a name, such as a headless Service
    ("grpc.use_local_subchannel_pool", 1),  # one connection per client
]

RUNNER_UP_TOP = 2 + len(UNANSWERABLE_LABELS)  # classes among which there are two answers
MAX_ISSUES = 100  # Triton sends as many classes as there are, if fewer


def connection_arguments(settings: Settings) -> dict[str, Any]:
    """Arguments of tritonclient's ``InferenceServerClient``, synchronous or asynchronous."""
    # gRPC would send requests for localhost to the proxy too, which is another machine
    proxy = [("grpc.enable_http_proxy", 0)] if is_loopback(settings.url) else []
    arguments: dict[str, Any] = {"url": settings.url, "channel_args": _CHANNEL_ARGUMENTS + proxy}
    if settings.tls is not None:
        arguments["creds"] = grpc.ssl_channel_credentials(*settings.tls.contents)
    return arguments


def infer_arguments(arrays: Mapping[str, npt.NDArray[Any]], top: int, with_quality: bool) -> dict[str, Any]:
    """Arguments of ``infer`` for the ensemble's inputs: pixels uint8 [B, S, S, 3], and ``tokens`` int32 [B, 77].

    ``answer`` [B, top or more], ``answer_type`` [B, 1] and ``quality`` [B, Q] are requested as text, best first,
    ``b"probability:index:label"``:
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
    """
    inputs = []
    for name, array in arrays.items():
        inputs.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    outputs = [
        InferRequestedOutput(tensors.ANSWER.name, class_count=max(top, RUNNER_UP_TOP)),
        InferRequestedOutput(tensors.ANSWER_TYPE.name, class_count=1),
        InferRequestedOutput(tensors.ANSWERABLE.name),
        InferRequestedOutput(tensors.HEAD_ID.name),
    ]
    if with_quality:
        outputs.append(InferRequestedOutput(tensors.QUALITY.name, class_count=MAX_ISSUES))
    return {"model_name": tensors.ENSEMBLE, "inputs": inputs, "outputs": outputs}


def read_reply(result: Any, url: str, top: int) -> list[dict[str, Any]]:
    """Fields of each :class:`Answer` that come from the model, read from tritonclient's ``InferResult``.

    Raises:
        ContractMismatch: the classes have no labels.
    """
    answers, types, answerable, heads = (result.as_numpy(spec.name) for spec in tensors.HEAD_OUTPUTS)
    quality = result.as_numpy(tensors.QUALITY.name)  # None if it was not requested
    replies = []
    for row in range(len(answers)):
        ranked = tuple(_candidate(value, url) for value in answers[row])
        others = (candidate for candidate in ranked[1:] if candidate.answer not in UNANSWERABLE_LABELS)
        issues = () if quality is None else (_candidate(value, url) for value in quality[row])
        replies.append(
            {
                "candidates": ranked[:top],
                "runner_up": next(others, None),
                "answer_type": _candidate(types[row][0], url).answer,
                "answerable": float(answerable[row][0]),
                "head_id": tensors.head_digest(int(heads[row][0])),
                "quality": dict(issues),
            }
        )
    return replies


def _candidate(value: bytes, url: str) -> Candidate:
    confidence, label = tensors.parse_label(value)
    if label is None:
        raise ContractMismatch(
            f"the server at {url} sends answers without labels, expected 'probability:index:label'; export its model "
            "again"
        )
    return Candidate(label, confidence)


def read_model_info(config: Any, url: str) -> ModelInfo:
    """Verify the ``ModelConfig`` message of the server at ``url`` against the contract.

    Raises:
        ContractMismatch: the text lists every difference, what the server has and what this client expects.
    """
    version = config.parameters[tensors.CONTRACT_VERSION_PARAMETER].string_value
    if version != str(tensors.CONTRACT_VERSION):
        raise ContractMismatch(
            f"the server at {url} has contract version {version or 'none'}, this client has "
            f"{tensors.CONTRACT_VERSION}; install the vizwiz-client that was released with the server"
        )
    models = tuple(step.model_name for step in config.ensemble_scheduling.step)
    parsed = (tensors.parse_image_input(tensor.name, tensor.dims) for tensor in config.input)
    images = tuple(image for image in parsed if image)
    # earlier exports accept any number of tokens, which includes the contract's 77
    is_open = any(tensor.name == "tokens" and list(tensor.dims) == [-1] for tensor in config.input)
    inputs = {
        **{replace(tensors.IMAGE, name=image.name): (image.image_size, image.image_size, 3) for image in images},
        tensors.TOKENS: (-1,) if is_open else tensors.TOKENS.shape,
    }
    outputs = {spec: spec.shape for spec in tensors.HEAD_OUTPUTS}
    for tensor in config.output:
        if tensor.name == tensors.QUALITY.name:
            outputs[tensors.QUALITY] = tuple(tensor.dims)  # any number of issues
    differences = [
        *_differences("input", config.input, inputs),
        *_differences("output", config.output, outputs),
        *_missing_models(models),
    ]
    if not images:
        differences.append("there is no image input")
    differences += [
        f"input {image.name!r} has the image size {image.image_size}, expected at least 1 pixel"
        for image in images
        if image.image_size < 1
    ]
    known = {spec.name for spec in inputs}
    differences += [
        f"input {tensor.name!r} is unknown to this client" for tensor in config.input if tensor.name not in known
    ]
    if config.max_batch_size < 1:
        differences.append(f"max_batch_size {config.max_batch_size}, expected at least 1")
    if differences:
        raise ContractMismatch(
            f"{config.name or tensors.ENSEMBLE} at {url} does not fit this client: {'; '.join(differences)}; export "
            "its model again, or install the vizwiz-client that was released with it"
        )
    demo = config.parameters[tensors.DEMO_PARAMETER].string_value == "true"
    thresholds = Thresholds.parse(config.parameters[tensors.WORDING_PARAMETER].string_value)
    return ModelInfo(
        config.name,
        int(version),
        images,
        int(config.max_batch_size),
        models,
        demo,
        serves_quality=tensors.QUALITY in outputs,
        thresholds=thresholds,
    )


def _differences(what: str, configured: Iterable[Any], expected: Mapping[TensorSpec, Sequence[int]]) -> list[str]:
    found = {tensor.name: _describe(tensor) for tensor in configured}
    wanted = {spec.name: f"{spec.datatype} {list(dims)}" for spec, dims in expected.items()}
    return [
        f"{what} {name!r} is {found.get(name, 'absent')} there, expected {text}"
        for name, text in wanted.items()
        if found.get(name) != text
    ]


def _describe(tensor: Any) -> str:
    return f"{model_config_pb2.DataType.Name(tensor.data_type).removeprefix('TYPE_')} {list(tensor.dims)}"


def _missing_models(models: Sequence[str]) -> list[str]:
    return [
        f"the ensemble has {', '.join(models) or 'no models'}, expected one {prefix}<digest> among them"
        for prefix in (tensors.IMAGE_ENCODER_PREFIX, tensors.TEXT_ENCODER_PREFIX, tensors.HEAD_PREFIX)
        if not any(model.startswith(prefix) for model in models)
    ]
