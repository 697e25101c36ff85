"""A tiny model repository, and a live server of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from serving.server import EmbeddedTriton
from tests.serving.tiny_repository import write_repository


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that no test changes: see `own_repository`."""
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder)
    return folder


@pytest.fixture
def own_repository(tiny_repository: Path, tmp_path: Path) -> Path:
    """A copy of the repository for a test that changes it."""
    return Path(shutil.copytree(tiny_repository, tmp_path / "models"))


@pytest.fixture(scope="session")
def server(tiny_repository: Path) -> Iterator[EmbeddedTriton]:
    """A live server, which logs as much as it can."""
    with EmbeddedTriton(tiny_repository, verbose=True) as server:
        yield server


@pytest.fixture
def client(server: EmbeddedTriton) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url) as client:
        yield client
