"""Photo quality from a real Triton, and its rollback to a head without."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from tests.client.conftest import KINDS
from tests.client.small_server import QUALITY_ISSUES, SmallServer, add_quality
from tests.serving.tiny_repository import HEAD
from vizwiz_client import Answer, Thresholds

GREEN_BLUE = Image.new("RGB", (40, 30), (0, 200, 150))
QUESTION = "what colour is it?"


def test_quality_and_its_rollback(small_repository: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(small_repository, tmp_path / "models"))
    add_quality(repository, HEAD)
    with SmallServer(repository) as server:
        port = int(server.grpc_url.rpartition(":")[2])
        clients = [kind(server.grpc_url, retries=1_000) for kind in KINDS]
        for client in clients:
            assert client.check().serves_quality
            answer = client.ask(GREEN_BLUE, QUESTION)
            assert list(answer.quality) == ["framing", "dark", "blur"]  # the most probable first
            assert set(answer.quality) == set(QUALITY_ISSUES)
            assert [advice.partition(".")[0] for advice in answer.advice] == [
                "Part of the object is out of view",
                "The photo is too dark",
            ]
            assert answer.thresholds.sure_from == 0.4
            assert client.ask_batch([(GREEN_BLUE, QUESTION)] * 2) == [answer] * 2
    with SmallServer(small_repository, grpc_port=port):  # on the same port, without quality
        for client in clients:
            many = list(client.ask_many([(GREEN_BLUE, QUESTION)] * 20))
            assert all(isinstance(answer, Answer) for answer in many), many
            assert client.ask(GREEN_BLUE, QUESTION).quality == {}
            assert client.ask(GREEN_BLUE, QUESTION).thresholds == Thresholds()
    for client in clients:
        client.close()
