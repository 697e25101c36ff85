"""A server in this process that speaks Triton's protocol, for states that a real one cannot be put into on demand."""

from __future__ import annotations

import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from vizwiz_client.contract import tensors

SIDE = 32
HEAD = "00a1b2c3d4e5"
MODELS = (
    f"{tensors.IMAGE_ENCODER_PREFIX}111111111111",
    f"{tensors.TEXT_ENCODER_PREFIX}222222222222",
    f"{tensors.HEAD_PREFIX}{HEAD}",
)


@dataclass
class FakeServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with numbers made from what it was sent, so that a mixed-up batch shows; keeps the shapes it saw."""

    contract_version: str = str(tensors.CONTRACT_VERSION)
    image_dims: tuple[int, ...] = (SIDE, SIDE, 3)
    replicas: tuple[int, ...] = ()  # image sizes of replicas that take the calls in turn, and refuse other photos
    max_batch_size: int = tensors.MAX_BATCH_SIZE
    models: tuple[str, ...] = MODELS
    not_ready: tuple[str, ...] = ()
    missing: bool = False  # the ensemble is not there
    labelled: bool = True
    answerable: float = 0.75
    labels: tuple[str, ...] = ()  # the answers, best first, instead of the numbers
    quality: dict[str, float] | None = None  # None: the head has no such output, and requests for it are refused
    wording: str = ""  # the ensemble's parameter
    head: str = HEAD  # that answers; `models` are those of the configuration
    failure: tuple[grpc.StatusCode, str] | None = None  # what the next requests end with
    failures_left: int | None = None  # how many of them; None is all
    delay_s: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)  # no request passes while it is clear
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    over: list[str] = field(default_factory=list)  # ids of the requests that were answered, or given up by the client
    metadata: list[dict[str, str]] = field(default_factory=list)  # of every call
    config_reads: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.gate.set()

    def _next_dims(self) -> tuple[int, ...]:
        if self.replicas:
            side, *others = self.replicas
            self.replicas, self.image_dims = (*others, side), (side, side, 3)
        return self.image_dims

    def ServerMetadata(self, request, context):
        return service_pb2.ServerMetadataResponse(name="fake-server", version="1.2")

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.name not in self.not_ready)

    def ModelConfig(self, request, context):
        self.config_reads += 1
        self.metadata.append(dict(context.invocation_metadata()))
        if request.name != tensors.ENSEMBLE or self.missing:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        response = service_pb2.ModelConfigResponse()
        response.config.parameters[tensors.CONTRACT_VERSION_PARAMETER].string_value = self.contract_version
        response.config.name = request.name
        response.config.max_batch_size = self.max_batch_size
        response.config.input.add(name="image", data_type="TYPE_UINT8", dims=self._next_dims())
        response.config.input.add(name="tokens", data_type="TYPE_INT32", dims=tensors.TOKENS.shape)
        for spec in tensors.HEAD_OUTPUTS:
            response.config.output.add(name=spec.name, data_type=f"TYPE_{spec.datatype}", dims=spec.shape)
        if self.quality is not None:
            response.config.output.add(name="quality", data_type="TYPE_FP32", dims=[-1])
        response.config.parameters[tensors.WORDING_PARAMETER].string_value = self.wording
        for model in self.models:
            response.config.ensemble_scheduling.step.add(model_name=model)
        return response

    def ModelInfer(self, request, context):
        self.request_ids.append(request.id)
        context.add_callback(lambda: self.over.append(request.id))
        self.metadata.append(dict(context.invocation_metadata()))
        time.sleep(self.delay_s)
        self.gate.wait()
        if self.failure is not None and self.failures_left != 0:
            self.failures_left = None if self.failures_left is None else self.failures_left - 1
            context.abort(*self.failure)
        if self.quality is None and any(output.name == "quality" for output in request.outputs):
            message = (
                f"[request id: {request.id}] unexpected inference output 'quality' for model '{request.model_name}'"
            )
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)  # as Triton 2.51 says it
        inputs = {
            tensor.name: np.frombuffer(data, np.uint8 if tensor.datatype == "UINT8" else np.int32).reshape(tensor.shape)
            for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        image, tokens = inputs[tensors.IMAGE.name], inputs[tensors.TOKENS.name]
        if image.shape[1:] != self._next_dims() and self.replicas:
            message = f"unexpected shape for input 'image' for model '{request.model_name}'"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        self.shapes.append((image.shape, tokens.shape))
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for output in request.outputs:
            count = output.parameters["classification"].int64_param
            rows = [self.reply(output.name, pixels, ids, count) for pixels, ids in zip(image, tokens, strict=True)]
            datatype = "BYTES" if count else {"head_id": "INT64", "answerable": "FP32"}[output.name]
            response.outputs.add(name=output.name, datatype=datatype, shape=[len(image), len(rows[0])])
            response.raw_output_contents.append(b"".join(chain(*rows)))
        return response

    def reply(self, name: str, pixels: np.ndarray, ids: np.ndarray, count: int) -> list[bytes]:
        if name == tensors.HEAD_ID.name:
            return [struct.pack("<q", tensors.head_id(self.head))]
        if name == tensors.ANSWERABLE.name:
            return [struct.pack("<f", self.answerable)]
        if name == tensors.QUALITY.name:
            assert self.quality is not None
            values = [f"{value:.6f}:{index}:{issue}" for index, (issue, value) in enumerate(self.quality.items())]
        else:
            labels = self.labels or tuple(f"{rank}: {pixels.sum()} {ids.sum()}" for rank in range(count))
            values = [f"{0.5 / (rank + 1):.6f}:{rank}:{label}" for rank, label in enumerate(labels[:count])]
        if not self.labelled:
            values = [value.rsplit(":", 1)[0] for value in values]
        return [struct.pack("<I", len(value.encode())) + value.encode() for value in values]


def serve(servicer: FakeServer, address: str = "127.0.0.1:0") -> tuple[grpc.Server, str]:
    """Start serving; return the server, to stop, and its "host:port"."""
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    servicer.url = f"127.0.0.1:{server.add_insecure_port(address)}"
    server.start()
    return server, servicer.url
