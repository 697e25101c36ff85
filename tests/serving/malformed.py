"""Requests that no client should send, over HTTP and gRPC: each is to be refused, and none may harm the server."""

from __future__ import annotations

import copy
import http.client
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from vizwiz_client.contract import tensors

DEADLINE_S = 20  # of each: the machine may be busy

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_GIANT = "a" * 3_000_000
_WRONG_TYPES = ("FP32", "BYTES", "INT64", "BOOL", "FP16", "UINT8", "NONSENSE", "", "\0")
_WRONG_SHAPES = (
    [], [0], [-1], [1], [1, -1], [1, 4, 4], [1, 4, 4, 4], [0, 4, 4, 3], [65, 4, 4, 3], [9999999],
)  # fmt: skip  # see FATAL_SHAPE for larger ones
FATAL_SHAPE = [1, 2**63 - 1]  # over HTTP's JSON, of which Triton 2.51 makes a string of that length, and aborts
_WRONG_NAMES = ("", "Image", "image ", "text_features", "../../etc/passwd", "\0", "ｉｍａｇｅ", _GIANT[:5000], "%s%n")

Inputs = list[dict[str, Any]]


def good_inputs(side: int) -> Inputs:
    """A request that the tensor ensemble answers, as HTTP's JSON has it."""
    picture = [[[[7] * 3] * side] * side]
    return [
        {"name": "image", "datatype": "UINT8", "shape": [1, side, side, 3], "data": picture},
        {"name": "tokens", "datatype": "INT32", "shape": [1, 8], "data": [[1, 2, 3, 4, 5, 6, 7, 8]]},
    ]


def damage(inputs: Inputs, dice: random.Random) -> dict[str, Any]:
    """A request whose ``inputs`` are wrong in one way."""
    victim = inputs[dice.randrange(len(inputs))]
    request: dict[str, Any] = {"inputs": inputs}
    data: list[Any] = [[], [1], None, "text", {}, [[None]], [["a"]], [[float("nan")]], [[float("inf")]], [[1e400]],
                       [[-1]], [[2**40]], [[[[[[[[[[1]]]]]]]]]], [_GIANT], [[True]]]  # fmt: skip
    ways: list[Callable[[], Any]] = [
        lambda: victim.update(name=dice.choice(_WRONG_NAMES)),
        lambda: victim.update(datatype=dice.choice([x for x in _WRONG_TYPES if x != victim["datatype"]])),
        lambda: victim.update(shape=dice.choice(_WRONG_SHAPES)),
        lambda: victim.update(data=dice.choice(data)),
        lambda: inputs.remove(victim),
        lambda: inputs.append(dict(victim)),
        lambda: inputs.append({**victim, "name": "another"}),
        lambda: victim.pop(dice.choice(["name", "datatype", "shape", "data"])),
        lambda: request.update(outputs=[{"name": dice.choice(_WRONG_NAMES)}]),
        lambda: request.update(outputs=[{"name": "answer", "parameters": {"classification": -1}}]),
        lambda: request.update(outputs=[{"name": "answer", "parameters": {"shared_memory_region": "none"}}]),
        lambda: victim.update(parameters={"shared_memory_region": "none", "shared_memory_byte_size": 48}),
        lambda: victim.update(parameters={"binary_data_size": dice.choice([-1, 2**60, "many", 48])}),
        lambda: request.update(inputs=dice.choice([None, 1, "text", {}, []])),
    ]
    dice.choice(ways)()
    return request


def http_body(good: Inputs, dice: random.Random) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a wrong ``infer`` over HTTP, made of a ``good`` one."""
    body = json.dumps(damage(copy.deepcopy(good), dice)).encode()
    way = dice.randrange(10)
    if way == 0:
        return body[: dice.randrange(len(body))], {}
    if way == 1:
        return dice.randbytes(dice.randrange(1, 2000)), {}
    if way == 2:
        return body, {
            "Inference-Header-Content-Length": dice.choice(["-1", "1", "99999999", "many", str(len(body) - 1)])
        }
    if way == 3:
        return b"[" * dice.randrange(1, 20_000), {}
    if way == 4:
        return body, {"Content-Encoding": dice.choice(["gzip", "deflate"])}
    return body, {}


def send_http(address: str, body: bytes, headers: dict[str, str], ensemble: str = tensors.ENSEMBLE) -> int:
    """The status of the answer; 0 where the server hung up instead."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
    try:
        connection.request("POST", f"/v2/models/{ensemble}/infer", body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except (ConnectionError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def good_message(side: int) -> pb.ModelInferRequest:
    """A request that the tensor ensemble answers, as gRPC has it."""
    request = pb.ModelInferRequest(model_name=tensors.ENSEMBLE, id="fuzz")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, side, side, 3])
    request.inputs.add(name="tokens", datatype="INT32", shape=[1, 8])
    request.raw_input_contents.extend([b"\7" * 3 * side * side, b"\1\0\0\0" * 8])
    return request


def grpc_message(good: pb.ModelInferRequest, dice: random.Random) -> bytes:
    """A wrong ``ModelInferRequest``, made of a ``good`` one and serialised, or bytes that are none."""
    request = copy.deepcopy(good)
    index = dice.randrange(2)
    victim = request.inputs[index]
    ways: list[Callable[[], Any]] = [
        lambda: setattr(request, "model_name", dice.choice(_WRONG_NAMES)),
        lambda: setattr(request, "model_version", dice.choice(["0", "2", "99999999999999999999", "x", _GIANT])),
        lambda: setattr(victim, "name", dice.choice(_WRONG_NAMES)),
        lambda: setattr(victim, "datatype", dice.choice([x for x in _WRONG_TYPES if x != victim.datatype])),
        lambda: victim.ClearField("shape"),
        lambda: victim.shape.__setitem__(slice(None), dice.choice(_WRONG_SHAPES)),
        lambda: request.raw_input_contents.pop(),
        lambda: request.raw_input_contents.__setitem__(index, dice.choice([b"", b"\0", b"\xff" * 8, _GIANT.encode()])),
        lambda: victim.contents.fp32_contents.extend([float("nan")] * 8),
        lambda: victim.contents.int_contents.extend([1] * 8),
        lambda: request.inputs.pop(index),
        lambda: request.inputs.add(name="another", datatype="FP32", shape=[1]),
        lambda: victim.parameters["shared_memory_region"].__setattr__("string_param", "none"),
        lambda: request.outputs.add(name=dice.choice(_WRONG_NAMES)),
        lambda: request.outputs.add(name="answer").parameters["classification"].__setattr__("int64_param", -1),
        lambda: request.parameters["sequence_id"].__setattr__("string_param", _GIANT),
        lambda: request.parameters["priority"].__setattr__("string_param", "high"),
        lambda: request.parameters["timeout"].__setattr__("bool_param", True),
    ]
    dice.choice(ways)()
    message = bytes(request.SerializeToString())
    way = dice.randrange(8)
    if way == 0:
        return message[: dice.randrange(1, len(message))]
    if way == 1:
        return dice.randbytes(dice.randrange(1, 2000))
    return message


def send_grpc(channel: grpc.Channel, message: bytes) -> grpc.StatusCode:
    """The status of the answer."""
    send = channel.unary_unary(_INFER, request_serializer=None, response_deserializer=None)
    try:
        send(message, timeout=DEADLINE_S)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def send_all(
    count: int, http_address: str, grpc_address: str, inputs: Inputs, message: pb.ModelInferRequest, dice: random.Random
) -> Counter[Any]:
    """The statuses of ``count`` wrong requests, half over HTTP and half over gRPC, made of these good ones."""
    statuses: Counter[Any] = Counter()
    with grpc.insecure_channel(grpc_address) as channel:
        for _ in range(count // 2):
            statuses[send_http(http_address, *http_body(inputs, dice), message.model_name)] += 1
            statuses[send_grpc(channel, grpc_message(message, dice))] += 1
    return statuses


def check_refusals(statuses: Counter[Any]) -> None:
    """Check that the server refused every wrong request in words, but for those after which it may hang up."""
    code = grpc.StatusCode
    refusals = {0, 400, 404, 500, code.INVALID_ARGUMENT, code.NOT_FOUND, code.INTERNAL, code.UNIMPLEMENTED}
    assert statuses.keys() <= refusals | {code.RESOURCE_EXHAUSTED}, statuses
    assert {400, code.INVALID_ARGUMENT} <= statuses.keys()
    assert statuses[0] < 0.05 * statuses.total(), "the server hung up on many"
