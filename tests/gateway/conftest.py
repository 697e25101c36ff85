"""A real Triton of the smallest repository, and a gateway in front of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.small_server import SmallServer, write_small_repository
from tests.conftest import LiveServer
from tests.gateway.browser import Visit, chromium
from tests.gateway.processes import Gateway, draw_photo
from tests.serving import tiny_repository
from training.dataset import read_split
from vizwiz_client import VizwizClient
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tokenizer import END_OF_TEXT
from vizwiz_client.contract.wording import Wording

SIDE = 32  # pixels
SECOND_HEAD = "gated_head_00000000beef"


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the common one, but its pixels, 32 x 32, are a photo for the client; with a second head."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_repository, "SIDE", SIDE)
        patch.setattr(tiny_repository, "_IMAGE", {tensors.IMAGE: (SIDE, SIDE, 3)})
        write_small_repository(folder)
        patch.setattr(tiny_repository, "TOKEN_VALUES", np.arange(END_OF_TEXT + 1, dtype=np.float32) % 7)
        tiny_repository.write_head(folder / SECOND_HEAD, ("mug", "cup", "spoon", "fork", "a: b"), 2.0)
    return folder


@pytest.fixture(scope="session")
def triton(small_repository: Path) -> Iterator[SmallServer]:
    """A live server that no test stops."""
    with SmallServer(small_repository) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(triton: SmallServer) -> Iterator[Gateway]:
    with Gateway(triton.grpc_url) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def photo() -> bytes:
    return draw_photo()


@dataclass(frozen=True)
class Asked:
    """A question about a drawn photo, and what the demo's model says to it."""

    photo: Path
    question: str
    words: Wording


@pytest.fixture(scope="session")
def asked(live_server: LiveServer) -> dict[str, Asked]:
    """For each outcome, one question of the demo's val split that has it."""
    split = read_split(live_server.data, "val")
    pairs = [(split.photos / record.image, record.question) for record in split.records]
    with VizwizClient(live_server.grpc_url) as client:
        answers = client.ask_batch(pairs, top=5)
    found: dict[str, Asked] = {}
    for (photo, question), answer in zip(pairs, answers, strict=True):
        found.setdefault(answer.words.outcome, Asked(photo, question, answer.words))
    assert set(found) == {"answered", "unsure", "declined"}
    return found


@pytest.fixture(scope="module")
def demo_gateway(live_server: LiveServer) -> Iterator[Gateway]:
    """A gateway in front of the demo's model, which takes photos of at most 2 MB."""
    with Gateway(live_server.grpc_url, "--max-photo-bytes=2000000") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Make a visit; ``script`` runs before the page's own, the other arguments are of Playwright's ``new_context``."""
    visits = []

    def start(script: str | None = None, **options: Any) -> Visit:
        context = browser.new_context(**options)
        if script:
            context.add_init_script(script)
        visits.append(Visit(context.new_page()))
        return visits[-1]

    yield start
    for each in visits:
        each.page.context.close()
    assert [fault for each in visits for fault in each.faults] == []
