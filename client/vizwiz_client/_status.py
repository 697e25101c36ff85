"""The checks behind ``status()``: server, models, contract, and latency of a built-in photo."""

from __future__ import annotations

import io
import time

from vizwiz_client._core import Core
from vizwiz_client._results import Check, ModelInfo, Status
from vizwiz_client.contract import tensors
from vizwiz_client.contract.errors import ContractMismatch, ModelMissing, ServerError

QUESTION = "what color is this?"
ROUNDS = 5  # timed questions; their median is the latency


async def read_status(core: Core, max_latency_s: float) -> Status:
    """Check the server. Failed checks are in the result; no ServerError is raised."""
    if not max_latency_s > 0:
        raise ValueError(f"got max_latency_s={max_latency_s}, expected a number of seconds over 0")
    url = core.settings.url
    server = await _check_server(core)
    if not server.ok:
        return Status(url, (server, _skipped("models"), _skipped("contract"), _skipped("latency")))
    try:
        info = await core.check()
    except ModelMissing as error:
        return Status(url, (server, _failed("models", error), _skipped("contract"), _skipped("latency")))
    except ServerError as error:
        return Status(url, (server, _skipped("models"), _failed("contract", error), _skipped("latency")))
    models = await _check_models(core, info)
    sizes = " and ".join(f"{image.image_size}" for image in info.images)
    contract = Check("contract", True, f"version {info.contract_version}, image size {sizes} pixels")
    if not models.ok:
        return Status(url, (server, models, contract, _skipped("latency")))
    return await _check_latency(core, info, (server, models, contract), max_latency_s)


async def _check_server(core: Core) -> Check:
    try:
        metadata = await core.call("get_server_metadata", {})
    except ServerError as error:
        return _failed("server", error)
    return Check("server", True, f"{metadata.name} {metadata.version} at {core.settings.url}")


async def _check_models(core: Core, info: ModelInfo) -> Check:
    try:
        names = (info.model, *info.models)
        missing = [name for name in names if not await core.call("is_model_ready", {"model_name": name})]
    except ServerError as error:
        return _failed("models", error)
    if missing:
        text = f"not ready: {', '.join(missing)}; the server's log says why, load them or export the model again"
        return _failed("models", ModelMissing(text))
    return Check("models", True, f"{info.model} answers with {', '.join(info.models)}")


async def _check_latency(
    core: Core, info: ModelInfo, checks: tuple[Check, Check, Check], max_latency_s: float
) -> Status:
    """Time questions about the built-in photo; verify that a configured head answers."""
    photo, seconds = built_in_photo(), []
    url = core.settings.url
    try:
        answer = await core.ask(photo, QUESTION, 1)  # the first question warms up
        for _ in range(ROUNDS):
            start = time.perf_counter()
            answer = await core.ask(photo, QUESTION, 1)
            seconds.append(time.perf_counter() - start)
    except ServerError as error:
        return Status(url, (*checks, _failed("latency", error)))
    head = tensors.HEAD_PREFIX + answer.head_id
    if head not in info.models:
        server, _, contract = checks
        text = f"{head} answered, but {', '.join(info.models)} are configured; do all replicas serve the same?"
        checks = (server, _failed("models", ContractMismatch(text)), contract)
    latency_s = sorted(seconds)[ROUNDS // 2]
    text = f"an answer takes {_format_seconds(latency_s)}"
    if latency_s > max_latency_s:
        text += (
            f", expected at most {_format_seconds(max_latency_s)}; is the server busy, or its CLIP too large for the "
            "machine? A GPU, a faster precision or a smaller CLIP helps"
        )
    latency = Check("latency", latency_s <= max_latency_s, text)
    return Status(url, (*checks, latency), latency_s, answer.head_id)


def built_in_photo() -> bytes:
    """A red disc on white, 320 x 240, as a PNG file of a few kB."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((80, 40, 240, 200), fill="red")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _failed(name: str, error: ServerError) -> Check:
    return Check(name, False, str(error), error)


def _skipped(name: str) -> Check:
    return Check(name, None, "not checked, because an earlier check failed")


def _format_seconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.1f} s"
