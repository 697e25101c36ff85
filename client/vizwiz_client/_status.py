"""Is the server all right? Asked of the server itself, and about a picture that is built in."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vizwiz_client.contract.errors import ContractMismatch, ModelMissing, ServerError, VizwizError

if TYPE_CHECKING:
    from vizwiz_client._core import Core
    from vizwiz_client._model_info import ModelInfo

DEFAULT_MAX_LATENCY_S = 1.0  # longer breaks a person's train of thought (Nielsen, Usability Engineering, 1993, ch. 5)
QUESTION = "what color is this?"
ROUNDS = 5  # of which the median counts


@dataclass(frozen=True)
class Check:
    """One thing that has to be right."""

    name: str  # "server", "models", "contract" or "latency"
    ok: bool | None  # None where it was not checked, because another one is wrong
    text: str  # what was found, in words; where it is not right, what to do as well
    error: VizwizError | None = None  # what kept it from being right, if that was an error


@dataclass(frozen=True)
class Status:
    """Whether the server at ``url`` is all right: four checks, in the order in which they depend on each other."""

    url: str
    checks: tuple[Check, ...]
    latency_s: float | None = None  # median seconds of a question about the built-in picture, photo to answer
    head_id: str | None = None  # digest of the head that answered it

    @property
    def ok(self) -> bool:
        """Whether everything is right."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain values, ready for JSON."""
        checks = {check.name: {"ok": check.ok, "text": check.text} for check in self.checks}
        return {"url": self.url, "ok": self.ok, "latency_s": self.latency_s, "head_id": self.head_id, "checks": checks}


def built_in_picture() -> bytes:
    """A red disc on white, 320 x 240, as a PNG file of a few kB."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((80, 40, 240, 200), fill="red")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


async def read_status(core: Core, url: str, max_latency_s: float) -> Status:
    """Check the server; never raises a ServerError. An answer slower than ``max_latency_s`` is not right."""
    if not max_latency_s > 0:
        raise ValueError(f"got max_latency_s={max_latency_s}, expected a number of seconds over 0")
    server = await _server(core, url)
    if not server.ok:
        return Status(url, (server, *map(_unchecked, ("models", "contract", "latency"))))
    try:
        served = await core.check()
    except ServerError as error:
        models, contract = _unchecked("models"), _unchecked("contract")
        if isinstance(error, ModelMissing):
            models = Check("models", False, str(error), error)
        else:
            contract = Check("contract", False, str(error), error)
        return Status(url, (server, models, contract, _unchecked("latency")))
    models = await _models(core, served)
    contract = Check(
        "contract", True, f"version {served.contract_version}, pictures of {served.image_size} pixels a side"
    )
    if not models.ok:
        return Status(url, (server, models, contract, _unchecked("latency")))
    return await _ask(core, Status(url, (server, models, contract)), served, max_latency_s)


async def _server(core: Core, url: str) -> Check:
    try:
        metadata = await core.call("get_server_metadata", {})
    except ServerError as error:
        return Check("server", False, str(error), error)
    return Check("server", True, f"{metadata.name} {metadata.version} at {url}")


async def _models(core: Core, served: ModelInfo) -> Check:
    """Whether the ensemble and every model it is made of are ready."""
    try:
        names = (served.model, *served.models)
        missing = [name for name in names if not await core.call("is_model_ready", {"model_name": name})]
    except ServerError as error:
        return Check("models", False, str(error), error)
    if missing:
        text = f"not ready: {', '.join(missing)}; the server's log says why, load them or export the model again"
        return Check("models", False, text, ModelMissing(text))
    return Check("models", True, f"{served.model} answers with {', '.join(served.models)}")


async def _ask(core: Core, status: Status, served: ModelInfo, max_latency_s: float) -> Status:
    """``status`` with what asking about the built-in picture shows."""
    from vizwiz_client.contract import tensors  # brings NumPy

    picture, seconds = built_in_picture(), []
    try:
        answer = await core.ask(picture, QUESTION, 1)  # the first question warms up, and does not count
        for _ in range(ROUNDS):
            start = time.perf_counter()
            answer = await core.ask(picture, QUESTION, 1)
            seconds.append(time.perf_counter() - start)
    except ServerError as error:
        return Status(status.url, (*status.checks, Check("latency", False, str(error), error)))
    head = tensors.HEAD_PREFIX + answer.head_id
    if head not in served.models:
        text = (
            f"{head} answered, but {', '.join(served.models)} is what was configured; do all replicas serve the same?"
        )
        server, _, contract = status.checks
        status = Status(status.url, (server, Check("models", False, text, ContractMismatch(text)), contract))
    latency_s = sorted(seconds)[ROUNDS // 2]
    text = f"an answer takes {_spoken(latency_s)}"
    if latency_s > max_latency_s:
        text += (
            f", expected at most {_spoken(max_latency_s)}; is the server busy, or its CLIP too large for the machine? "
            "A GPU, a faster precision or a smaller CLIP helps"
        )
    latency = Check("latency", latency_s <= max_latency_s, text)
    return Status(status.url, (*status.checks, latency), latency_s, answer.head_id)


def _unchecked(name: str) -> Check:
    return Check(name, None, "not checked, since what it depends on is wrong")


def _spoken(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
