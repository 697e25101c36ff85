"""What a server says that it serves, checked against what this client sends and reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vizwiz_client.contract.errors import ContractMismatch


@dataclass(frozen=True)
class ModelInfo:
    """The part of the server's model configuration that a client depends on."""

    model: str  # the ensemble that is asked
    contract_version: int
    image_size: int  # S in pixels: a photo is sent as uint8 [S, S, 3]
    max_batch_size: int  # the most questions in one request
    models: tuple[str, ...]  # the immutable models that answer together: encoders and head, each with its digest


def read_model_info(config: Any, url: str) -> ModelInfo:
    """Read ``config``, a ``ModelConfig`` message, of the server at ``url``.

    Raises ContractMismatch: naming all that differs, what the server has and what this client expects.
    """
    from vizwiz_client.contract import tensors  # brings NumPy

    version = config.parameters[tensors.CONTRACT_VERSION_PARAMETER].string_value
    if version != str(tensors.CONTRACT_VERSION):
        raise ContractMismatch(
            f"the server at {url} has contract version {version or 'none'}, this client has "
            f"{tensors.CONTRACT_VERSION}; install the vizwiz-client that was released with the server"
        )
    models = tuple(step.model_name for step in config.ensemble_scheduling.step)
    side = next((tensor.dims[0] for tensor in config.input if tensor.name == tensors.IMAGE.name and tensor.dims), 0)
    # a repository of an earlier export leaves the length open, and takes the contract's as well
    is_open = any(tensor.name == tensors.TOKENS.name and list(tensor.dims) == [-1] for tensor in config.input)
    length = (-1,) if is_open else tensors.TOKENS.shape
    differences = [
        *_differences("input", config.input, {tensors.IMAGE: (side, side, 3), tensors.TOKENS: length}),
        *_differences("output", config.output, {spec: spec.shape for spec in tensors.HEAD_OUTPUTS}),
        *_missing(models, (tensors.IMAGE_ENCODER_PREFIX, tensors.TEXT_ENCODER_PREFIX, tensors.HEAD_PREFIX)),
    ]
    if side < 1:
        differences.append(f"pictures of side {side}, expected S pixels, at least 1")
    if config.max_batch_size < 1:
        differences.append(f"max_batch_size {config.max_batch_size}, expected at least 1")
    if differences:
        raise ContractMismatch(
            f"{config.name or tensors.ENSEMBLE} at {url} does not fit this client: {'; '.join(differences)}; export "
            "its model again, or install the vizwiz-client that was released with it"
        )
    return ModelInfo(config.name, int(version), int(side), int(config.max_batch_size), models)


def _differences(what: str, configured: Iterable[Any], expected: Any) -> list[str]:
    found = {tensor.name: _tensor(tensor) for tensor in configured}
    wanted = {spec.name: f"{spec.datatype} {list(dims)}" for spec, dims in expected.items()}
    return [
        f"{what} {name!r} is {found.get(name, 'absent')} there, expected {text}"
        for name, text in wanted.items()
        if found.get(name) != text
    ]


def _tensor(tensor: Any) -> str:
    from tritonclient.grpc import model_config_pb2

    return f"{model_config_pb2.DataType.Name(tensor.data_type).removeprefix('TYPE_')} {list(tensor.dims)}"


def _missing(models: Sequence[str], prefixes: Iterable[str]) -> list[str]:
    return [
        f"it answers with {', '.join(models) or 'no other models'}, expected one {prefix}<digest> among them"
        for prefix in prefixes
        if not any(model.startswith(prefix) for model in models)
    ]
