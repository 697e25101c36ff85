"""Each way to ask: Triton's two ensembles, the plain server, and the bare graphs in this process.

A sender is made once per measurement: what can be prepared (photos decoded, files read, tensors serialised) is prepared
then, so that sending costs the cores that the server needs as little as it can.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.serving.job import BARE, Job
from benchmarks.serving.material import draw_questions, photo_files, pixels, stacked_tokens
from export.targets import TARGETS, Graph, open_graph
from serving.rollout import DIRECT_CHANNEL
from vizwiz_client.contract import tensors

Send = Callable[[int], Awaitable[None]]  # sends the request of this number, and raises if the answer is not one
TIMEOUT_S = 300.0
BATCHES = 16  # different photos of a batch: prepared, they take memory

_BOUNDARY = "photo-and-question"


class AnswerError(Exception):
    """A reply that is no answer."""


async def open_sender(job: Job, stack: AsyncExitStack) -> Send:
    """Prepare the requests of ``job``, and connect."""
    if job.system == BARE:
        return _bare(job)
    if job.system.startswith("fastapi"):
        return _plain(job, await stack.enter_async_context(httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)))
    client = await stack.enter_async_context(InferenceServerClient(job.url, channel_args=DIRECT_CHANNEL))
    await client.is_server_ready()  # connects: that is no part of the first request
    return _triton(job, client)


def _triton(job: Job, client: InferenceServerClient) -> Send:
    batches = _photo_batches(job)
    raw = job.system != tensors.ENSEMBLE
    photos = [_input("image_bytes", _column(files)) if raw else _image(pixels(files, job.side)) for files in batches]
    questions = _question_batches(job)
    texts = [_input("question", _column([q.encode() for q in batch])) if raw else _tokens(batch) for batch in questions]
    outputs = [InferRequestedOutput(spec.name, class_count=1) for spec in (tensors.ANSWER, tensors.ANSWER_TYPE)]
    outputs += [InferRequestedOutput(spec.name) for spec in (tensors.ANSWERABLE, tensors.HEAD_ID)]
    outputs += [InferRequestedOutput("error")] * raw

    async def send(number: int) -> None:
        inputs = [photos[number % len(photos)], texts[number % len(texts)]]
        result = await client.infer(job.system, inputs, outputs=outputs, client_timeout=TIMEOUT_S)
        answers = result.as_numpy(tensors.ANSWER.name)
        if answers.shape != (job.batch, 1) or answers[0, 0].count(b":") < 2:
            raise AnswerError(f"got the answers {answers!r}, expected {job.batch} of one label each")
        if raw and (refused := [text for text in result.as_numpy("error").ravel() if text]):
            raise AnswerError(f"refused: {refused[0].decode()}")

    return send


def _plain(job: Job, client: httpx.AsyncClient) -> Send:
    photos = photo_files(Path(job.photos))
    questions = [batch[0] for batch in _question_batches(job)]
    bodies = [_part('photo"; filename="photo.jpg', photo) for photo in photos]
    headers = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}

    async def send(number: int) -> None:
        question = _part("question", questions[number % len(questions)].encode())
        body = bodies[number % len(bodies)] + question + f"--{_BOUNDARY}--\r\n".encode()
        response = await client.post(f"{job.url}/ask", content=body, headers=headers)
        if response.status_code != httpx.codes.OK or not response.json().get("answer"):
            raise AnswerError(f"status {response.status_code}: {response.text[:200]}")

    return send


def _bare(job: Job) -> Send:
    image, text = open_encoders(Path(job.repository), job.target)
    images = [pixels(files, job.side) for files in _photo_batches(job)]
    tokens = [stacked_tokens(batch) for batch in _question_batches(job)]

    async def send(number: int) -> None:
        image({tensors.IMAGE.name: images[number % len(images)]})
        text({tensors.TOKENS.name: tokens[number % len(tokens)]})

    return send


_opened: dict[Path, Graph] = {}  # compiling a large one takes longer than measuring it


def open_encoders(repository: Path, target: str) -> tuple[Graph, Graph]:
    """The image and the text encoder that ``repository`` serves; a process opens them once."""
    [named] = [each for each in TARGETS if each.name == target]
    paths = encoder_graphs(repository)
    for path in paths:
        if path not in _opened:
            _opened[path] = open_graph(path, named)
    return _opened[paths[0]], _opened[paths[1]]


def encoder_graphs(repository: Path) -> tuple[Path, Path]:
    """The graphs of the encoders that the ensemble of ``repository`` names."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    config = text_format.Parse((repository / tensors.ENSEMBLE / "config.pbtxt").read_text(), pb.ModelConfig())
    names = [step.model_name for step in config.ensemble_scheduling.step]
    found: Mapping[str, Path] = {
        prefix: repository / name / "1" / "model.onnx"
        for prefix in (tensors.IMAGE_ENCODER_PREFIX, tensors.TEXT_ENCODER_PREFIX)
        for name in names
        if name.startswith(prefix)
    }
    return found[tensors.IMAGE_ENCODER_PREFIX], found[tensors.TEXT_ENCODER_PREFIX]


def _photo_batches(job: Job) -> list[list[bytes]]:
    files = photo_files(Path(job.photos))[: 1 if job.one_photo else None]
    count = len(files) if job.batch == 1 else BATCHES
    return [[files[(number * job.batch + item) % len(files)] for item in range(job.batch)] for number in range(count)]


def _question_batches(job: Job) -> list[list[str]]:
    questions = draw_questions(job.seed, repeated=job.repeated, length=job.length)
    return [list(islice(questions, job.batch)) for _ in range(job.prepared)]


def _column(items: list[bytes]) -> npt.NDArray[np.object_]:
    return np.array(items, dtype=object)[:, None]


def _image(batch: npt.NDArray[np.uint8]) -> Any:
    return _input(tensors.IMAGE.name, batch)


def _tokens(questions: list[str]) -> Any:
    return _input(tensors.TOKENS.name, stacked_tokens(questions))


def _input(name: str, array: npt.NDArray[Any]) -> Any:
    datatype = {"uint8": "UINT8", "int32": "INT32", "object": "BYTES"}[array.dtype.name]
    return InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def _part(name: str, content: bytes) -> bytes:
    return f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"
