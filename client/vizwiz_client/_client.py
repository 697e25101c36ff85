"""The synchronous client: photos and questions in, answers out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from vizwiz_client._answer import Answer
from vizwiz_client._settings import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, DEFAULT_URL, Settings, Tls
from vizwiz_client._status import DEFAULT_MAX_LATENCY_S, Status
from vizwiz_client._threads import ThreadIo, as_async, iterate, run
from vizwiz_client.contract.errors import VizwizError

if TYPE_CHECKING:
    from vizwiz_client._model_info import ModelInfo
    from vizwiz_client.contract.image import Photo


class VizwizClient:
    """Asks the Triton server at ``url`` about photos. Safe to share between threads.

        with VizwizClient("localhost:8001") as client:
            answer = client.ask("img.jpg", "what is this?")

    A photo is a path, the bytes of a file, a binary file object, a PIL image, or a NumPy array uint8 [H, W, 3] (RGB) or
    [H, W] (grey): see :func:`vizwiz_client.contract.image.load_photo`.

    Args:
        url: "host:port", Triton's gRPC port.
        timeout_s: seconds for a whole call, retries included: of ``ask`` and ``ask_batch`` from the call to the
            answers, of ``ask_many`` for each of its requests.
        retries: how often a request is sent again when the server cannot be reached or its queue is full, after a pause
            that doubles. What the server refuses, fails at or is too slow for is not sent again.
        tls: encrypts the connection; None sends photos and questions in the clear.
        headers: sent with each request, for a gateway that wants to know who asks.
        fast_decode: let the JPEG decoder shrink large photos: several times faster, not quite the same pixels.

    Raises:
        WrongServer: ``url`` is no "host:port".
        ValueError: another argument cannot be used.

    The connection opens with the first question, when the server's model is checked against this client as well.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        fast_decode: bool = False,
    ) -> None:
        from vizwiz_client._core import Core  # NumPy and Pillow load with the first client, not with the package

        settings = Settings(url, timeout_s, retries, tls, headers or {}, fast_decode)
        self._io = ThreadIo(settings)
        self._core = Core(settings, self._io)

    def __enter__(self) -> VizwizClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end its threads; calls under way end with ServerUnavailable."""
        self._io.close()

    def check(self) -> ModelInfo:
        """Read from the server what it serves, and check that it fits. Raises a ServerError."""
        return run(self._core.check())

    def status(self, *, max_latency_s: float = DEFAULT_MAX_LATENCY_S) -> Status:
        """Ask the server, and about a built-in picture, whether server, models, contract and latency are right.

        Never raises a ServerError: what is wrong is in the result, with what to do. ``max_latency_s``: an answer that
        takes longer, in seconds, is not right.
        """
        return run(self._core.status(max_latency_s))

    def ask(self, image: Photo, question: str, *, top: int = 1) -> Answer:
        """Ask one question about one photo; ``top`` is how many candidate answers to return.

        A question has at most 5,000 characters, of which the model reads the first 75 tokens, about 50 words.

        Raises ImageError, QuestionError or a ServerError.
        """
        return run(self._core.ask(image, question, top))

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

        Sends as many pairs in a request as the server takes. With ``return_errors`` a pair that cannot be used puts its
        ImageError or QuestionError in its answer's place, and the others are answered; without it the first such error
        is raised. A ServerError is always raised.
        """
        return run(self._core.ask_batch(as_async(pairs), top, return_errors))

    def ask_many(self, pairs: Iterable[tuple[Photo, str]], *, top: int = 1) -> Iterator[Answer | VizwizError]:
        """Ask about any number of pairs; yields, in their order, an answer each, or the error in its place.

        Reads ``pairs`` a few dozen ahead and decodes photos while the server works, so that neither waits for the other
        and memory stays bounded. File objects, PIL images and arrays are read when they are taken from ``pairs``. A
        ServerError takes the place of each answer of its request; whether to go on is the caller's decision.
        """
        return iterate(self._core.ask_many(as_async(pairs), top))
