"""A real Triton of the smallest repository, and a gateway in front of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.client.small_server import SmallServer, write_small_repository
from tests.gateway.processes import Gateway, draw_photo
from tests.serving import tiny_repository
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tokenizer import END_OF_TEXT

SIDE = 32  # pixels
SECOND_HEAD = "gated_head_00000000beef"


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest repository whose pixels the client takes for a photo: 32 x 32. A second head lies beside."""
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
