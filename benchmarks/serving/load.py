"""Load generator: a closed loop of requests, in a process of its own.

It reads jobs from standard input and writes records to standard output, one JSON object a line. Photos are decoded and
requests serialised before the loop starts, because generator and server share the cores.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import httpx
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from export.targets import GRAPH_KINDS, Graph, open_graph
from serving.repository import read_config
from serving.rollout import DIRECT_CHANNEL
from vizwiz_client.contract import tensors
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tokenizer import pad, tokenize

GATEWAY = "gateway"
BARE = "bare encoders"  # both graphs, called in turn within the generator
INFINITY = "infinity"  # the photo alone, as JSON of OpenAI's embeddings API
LITSERVE = "litserve"  # photo and question as JSON
CHANNEL = [*DIRECT_CHANNEL, ("grpc.lb_policy_name", "round_robin")]
QUESTION = "{question}"  # its place in a body
Send = Callable[[int], Awaitable[None]]  # sends the request of this number; raises if it is not answered

TIMEOUT_S = 300.0  # of a request
MAX_ERRORS = 20  # a server that fails fast would otherwise be asked until the time is up
MAX_PHOTOS = 50  # of the folder: they are decoded in advance
# the share of VizWiz's 8,000 test questions that needs each of these numbers of positions
LENGTH_SHARES = dict(zip(tensors.TOKEN_LENGTHS, (0.557, 0.354, 0.072, 0.017), strict=True))
WORDS = """what is this the in my hand color does say on label can you tell me how much of how many are there which
side up read please would bottle box shirt food brand kind flavor screen number money bill date front back picture
see look left right open closed green red blue black white dog door key phone remote soup tea coffee bag""".split()


@dataclass(frozen=True)
class Job:
    """A closed loop: ``concurrency`` requests of one question each are always in flight."""

    system: str  # the ensemble, an image encoder, BARE, GATEWAY, INFINITY, LITSERVE, or another name: FastAPI
    photos: str  # folder of JPEG files
    image_size: int  # S in pixels, where decoded photos are sent
    url: str = ""  # gRPC: host:port, or ipv4:HOST:PORT,... of several; HTTP: one or several, separated by spaces
    repository: str = ""  # of the graphs, for BARE
    target: str = "portable-fp32"  # likewise, the target that they were written for
    concurrency: int = 1
    seed: int = 0  # of the questions
    distinct: int = 1_000  # requests with their own questions; after them, these questions come again
    ramp: int = 1  # completed requests before the measurement starts
    seconds: float = 4.0  # length of the measurement, which goes on until ...
    min_requests: int = 1  # ... so many requests are measured as well
    max_requests: int = 1_000_000
    max_seconds: float = 180.0


@dataclass
class Record:
    """The requests of a job. Times are seconds of the monotonic clock, which all processes share."""

    starts: list[float] = field(default_factory=list)  # of the requests that were answered, in the order of `ends`
    ends: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stopped: float = 0.0  # when the loop stopped sending


class AnswerError(Exception):
    """A reply without an answer."""


async def run(job: Job) -> Record:
    """Prepare the requests of ``job``, connect, and run its loop."""
    async with AsyncExitStack() as stack:
        if job.system == BARE:
            return await closed_loop(_bare_client(job), job)
        if job.url.startswith("http:"):
            # httpx takes 2.4 ms of the shared cores for a request, this 0.14 ms, gRPC 0.4 ms
            http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_S))
            return await closed_loop(_http_client(job, await stack.enter_async_context(http)), job)
        triton = await stack.enter_async_context(InferenceServerClient(job.url, channel_args=CHANNEL))
        await triton.is_server_ready()  # connects, which is no part of the first request
        return await closed_loop(_triton_client(job, triton), job)


async def closed_loop(send: Send, job: Job) -> Record:
    """Keep ``job.concurrency`` requests in flight until a limit of ``job`` is reached; wait for the last ones."""
    record, numbers, started = Record(), itertools.count(), time.monotonic()

    def finished() -> bool:
        now, measured = time.monotonic(), len(record.ends) - job.ramp
        since = record.ends[job.ramp - 1] if job.ramp and measured >= 0 else started
        enough = measured >= job.min_requests and now - since >= job.seconds
        return enough or now - started >= job.max_seconds or len(record.errors) >= MAX_ERRORS

    async def worker() -> None:
        while not finished() and (number := next(numbers)) < job.max_requests:
            start = time.monotonic()
            try:
                await send(number)
            except Exception as error:  # counted, whatever it is: a user would have had no answer
                record.errors.append(f"{type(error).__name__}: {error}"[:300])
                continue
            record.starts.append(start)
            record.ends.append(time.monotonic())
        record.stopped = record.stopped or time.monotonic()

    await asyncio.gather(*(worker() for _ in range(job.concurrency)))
    return record


def _triton_client(job: Job, client: InferenceServerClient) -> Send:
    photos = [_input(tensors.IMAGE.name, pixels) for pixels in _pixels(job)]
    texts = [_input(tensors.TOKENS.name, ids) for ids in _token_ids(job)]
    outputs = [InferRequestedOutput(spec.name, class_count=1) for spec in (tensors.ANSWER, tensors.ANSWER_TYPE)]
    outputs += [InferRequestedOutput(spec.name) for spec in (tensors.ANSWERABLE, tensors.HEAD_ID)]

    async def encode(number: int) -> None:
        result = await client.infer(job.system, [photos[number % len(photos)]], client_timeout=TIMEOUT_S)
        if len(result.as_numpy(tensors.IMAGE_FEATURES.name)) != 1:
            raise AnswerError("got no image features")

    if job.system.startswith(tensors.IMAGE_ENCODER_PREFIX):
        return encode

    async def send(number: int) -> None:
        inputs = [photos[number % len(photos)], texts[number % len(texts)]]
        result = await client.infer(job.system, inputs, outputs=outputs, client_timeout=TIMEOUT_S)
        answers = result.as_numpy(tensors.ANSWER.name)
        if answers.shape != (1, 1) or answers[0, 0].count(b":") < 2:
            raise AnswerError(f"got the answers {answers!r}, expected one label")

    return send


def _http_client(job: Job, client: aiohttp.ClientSession) -> Send:
    urls, questions = job.url.split(), list(islice(draw_questions(job.seed), job.distinct))
    requests = [_http_request(job.system, urls[0], photo, QUESTION) for photo in _photo_files(Path(job.photos))]
    bodies = [(each.url.path, each.read(), {"content-type": each.headers["content-type"]}) for each in requests]
    expected = '"embedding":' if job.system == INFINITY else '"answer":"'

    async def send(number: int) -> None:
        path, body, headers = bodies[number % len(bodies)]
        url = urls[number % len(urls)] + path
        body = body.replace(QUESTION.encode(), questions[number % len(questions)].encode(), 1)
        async with client.post(url, data=body, headers=headers) as response:
            text = await response.text()
        if response.status != httpx.codes.OK or expected not in text:
            raise AnswerError(f"status {response.status}: {text[:200]}")

    return send


def _http_request(system: str, url: str, photo: bytes, question: str) -> httpx.Request:
    if system in (INFINITY, LITSERVE):
        data = base64.b64encode(photo).decode()
        body: dict[str, Any] = {"input": [f"data:image/jpeg;base64,{data}"], "modality": "image"}
        path = "embeddings" if system == INFINITY else "ask"
        body = body if system == INFINITY else {"photo": data, "question": question}
        return httpx.Request("POST", f"{url}/{path}", json=body)
    path = "/v1/ask" if system == GATEWAY else "/ask"
    return httpx.Request("POST", f"{url}{path}", files={"photo": photo}, data={"question": question})


def _bare_client(job: Job) -> Send:
    image, text = open_encoders(Path(job.repository), job.target)
    images, tokens = _pixels(job), _token_ids(job)

    async def send(number: int) -> None:
        image({tensors.IMAGE.name: images[number % len(images)]})
        text({tensors.TOKENS.name: tokens[number % len(tokens)]})

    return send


@cache  # compiling a large encoder takes longer than measuring it
def open_encoders(repository: Path, target: str) -> tuple[Graph, Graph]:
    """The image and the text encoder of the ensemble in ``repository``."""
    [of_graphs] = [each for each in GRAPH_KINDS if each.name == target]
    steps = [step.model_name for step in read_config(repository / tensors.ENSEMBLE).ensemble_scheduling.step]
    image, text = (
        open_graph(repository / name / "1" / "model.onnx", of_graphs)
        for prefix in (tensors.IMAGE_ENCODER_PREFIX, tensors.TEXT_ENCODER_PREFIX)
        for name in steps
        if name.startswith(prefix)
    )
    return image, text


def draw_questions(seed: int) -> Iterator[str]:
    """Distinct questions without end, as long as VizWiz's."""
    rng, seen = Random(seed), set[str]()
    while True:
        [length] = rng.choices(list(LENGTH_SHARES), list(LENGTH_SHARES.values()))
        shorter = max((other for other in tensors.TOKEN_LENGTHS if other < length), default=4)
        words = rng.randint(shorter - 1, length - 2)  # start and end of text are tokens too; each word here is one
        question = " ".join(rng.choices(WORDS, k=words))
        if question not in seen:
            seen.add(question)
            yield question


@cache
def _photo_files(folder: Path) -> list[bytes]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{folder} has no JPEG file")
    return [path.read_bytes() for path in paths[:MAX_PHOTOS]]


def _pixels(job: Job) -> list[npt.NDArray[np.uint8]]:
    return [_decoded(file, job.image_size)[None] for file in _photo_files(Path(job.photos))]


@cache  # every measurement sends the same photos
def _decoded(file: bytes, image_size: int) -> npt.NDArray[np.uint8]:
    return to_pixels(load_photo(file), image_size)


def _token_ids(job: Job) -> list[npt.NDArray[np.int32]]:
    questions = islice(draw_questions(job.seed), job.distinct)
    return [pad(tokenize(question).ids, tensors.CONTEXT_LENGTH)[None] for question in questions]


def _input(name: str, array: npt.NDArray[Any]) -> Any:
    datatype = {"uint8": "UINT8", "int32": "INT32"}[array.dtype.name]
    return InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def main() -> None:
    """Run jobs until standard input ends."""
    for line in sys.stdin:
        print(json.dumps(asdict(asyncio.run(run(Job(**json.loads(line)))))), flush=True)


if __name__ == "__main__":
    main()
