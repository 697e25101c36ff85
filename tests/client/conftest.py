"""What the tests of the client share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.client.stand_in import StandIn, serve


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    servicer = StandIn()
    server, _ = serve(servicer)
    yield servicer
    server.stop(None).wait()


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Five photos, each of another size and colour."""
    paths = []
    for index, colour in enumerate(["red", "green", "blue", "white", "orange"]):
        paths.append(tmp_path / f"photo{index}.png")
        Image.new("RGB", (40 + index, 50), colour).save(paths[-1])
    return paths
