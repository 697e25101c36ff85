"""The client: photos and questions in, answers out."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from vizwiz_client._answer import Answer, Candidate
from vizwiz_client.contract import tensors
from vizwiz_client.contract.errors import ImageError, QuestionError, VizwizError, WrongServer
from vizwiz_client.contract.geometry import Photo, load_photo, to_pixels
from vizwiz_client.contract.tokens import Tokens, pad, tokenize

if TYPE_CHECKING:
    from vizwiz_client._triton import Triton

DEFAULT_URL = "localhost:8001"
DEFAULT_TIMEOUT_S = 60.0  # a full batch on a large CLIP and a CPU takes as long


class _Item(NamedTuple):
    pixels: npt.NDArray[np.uint8]  # [S, S, 3]
    tokens: Tokens


class VizwizClient:
    """Asks the Triton server at ``url`` ("host:port", its gRPC port). Safe to share between threads.

    ``timeout_s`` bounds each request to the server, of which ``ask_batch`` may send several. Nothing is sent twice: a
    failed request raises, and asking again is the caller's decision. The connection opens with the first question;
    leaving the ``with`` block, or :meth:`close`, closes it.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        if not re.fullmatch(r"[^/\s]+:\d+", url):
            raise WrongServer(f"got the address {url!r}, expected host:port without http://, such as {DEFAULT_URL}")
        if not timeout_s > 0:
            raise ValueError(f"got timeout_s={timeout_s}, expected a number of seconds over 0")
        self._url = url
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._connection: Triton | None = None
        self._image_side: int | None = None

    def __enter__(self) -> VizwizClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next question would open a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = self._image_side = None

    def ask(self, image: Photo, question: str, *, top: int = 1) -> Answer:
        """Ask one question about one photo: a path, a file's bytes or a PIL image.

        ``top`` is how many candidate answers to return. Raises ImageError, QuestionError or a ServerError.
        """
        return self.ask_batch([(image, question)], top=top)[0]

    @overload
    def ask_batch(
        self, pairs: Iterable[tuple[Photo, str]], *, top: int = ..., return_errors: Literal[False] = ...
    ) -> list[Answer]: ...

    @overload
    def ask_batch(
        self, pairs: Iterable[tuple[Photo, str]], *, top: int = ..., return_errors: bool
    ) -> list[Answer | VizwizError]: ...

    def ask_batch(self, pairs: Iterable[tuple[Photo, str]], *, top: int = 1, return_errors: bool = False) -> list[Any]:
        """Ask one question about each photo; answers come in the order of ``pairs``, as :meth:`ask` would give them.

        Sends up to 64 pairs per request and reads ``pairs`` as it goes, so a long iterable need not fit in memory.
        With ``return_errors`` a pair that cannot be used puts its ImageError or QuestionError in its answer's place,
        and the others are answered; without it the first such error is raised. A ServerError is always raised.
        """
        if top < 1:
            raise ValueError(f"got top={top}, expected 1 or more candidate answers")
        answers: list[Any] = []
        for group in _groups(pairs, tensors.MAX_BATCH_SIZE):
            prepared = [self._prepare(image, question, return_errors) for image, question in group]
            asked = iter(self._infer([item for item in prepared if isinstance(item, _Item)], top))
            answers += [next(asked) if isinstance(item, _Item) else item for item in prepared]
        return answers

    def _prepare(self, image: Photo, question: str, return_errors: bool) -> _Item | VizwizError:
        try:
            tokens, photo = tokenize(question), load_photo(image)
        except (ImageError, QuestionError) as error:
            if return_errors:
                return error
            raise
        return _Item(to_pixels(photo, self._side()), tokens)

    def _infer(self, items: Sequence[_Item], top: int) -> list[Answer]:
        if not items:
            return []
        length = max(len(item.tokens.ids) for item in items)
        image = np.stack([item.pixels for item in items])
        tokens = np.stack([pad(item.tokens.ids, length) for item in items])
        try:
            result = self._triton().infer(image, tokens, top)
        except WrongServer:
            self._image_side = None  # the server may serve another model now: read its config again the next time
            raise
        answers, types, answerable, heads = (result.as_numpy(spec.name) for spec in tensors.HEAD_OUTPUTS)
        return [
            Answer(
                candidates=tuple(self._candidate(value) for value in answers[row]),
                answer_type=self._candidate(types[row][0]).answer,
                answerable=float(answerable[row][0]),
                head=tensors.head_digest(int(heads[row][0])),
                question_truncated=item.tokens.truncated,
            )
            for row, item in enumerate(items)
        ]

    def _candidate(self, value: bytes) -> Candidate:
        """Read ``b"probability:index:label"``; the label may hold colons."""
        confidence, _, *label = value.decode().split(":", 2)
        if not label:
            raise WrongServer(f"the server at {self._url} sends answers without labels; export its model again")
        return Candidate(label[0], float(confidence))

    def _triton(self) -> Triton:
        from vizwiz_client._triton import Triton

        with self._lock:
            if self._connection is None:
                self._connection = Triton(self._url, self._timeout_s)
            return self._connection

    def _side(self) -> int:
        if self._image_side is None:
            self._image_side = _checked_side(self._triton().ensemble_config(), self._url)
        return self._image_side


def _checked_side(config: Any, url: str) -> int:
    """Return S, the side of the pictures that the served ensemble takes, or raise WrongServer."""
    version = config.parameters[tensors.CONTRACT_VERSION_PARAMETER].string_value
    if version != str(tensors.CONTRACT_VERSION):
        raise WrongServer(
            f"the server at {url} has contract version {version or 'none'}, this client has "
            f"{tensors.CONTRACT_VERSION}; install the vizwiz-client that was released with the server"
        )
    dims = next((tuple(tensor.dims) for tensor in config.input if tensor.name == tensors.IMAGE.name), ())
    if len(dims) != 3 or dims[0] < 1 or dims != (dims[0], dims[0], 3):
        raise WrongServer(
            f"the server at {url} takes pictures of shape {list(dims)}, expected [S, S, 3]; export its model again"
        )
    return int(dims[0])


def _groups(pairs: Iterable[tuple[Photo, str]], size: int) -> Iterator[list[tuple[Photo, str]]]:
    iterator = iter(pairs)
    while group := list(islice(iterator, size)):
        yield group
