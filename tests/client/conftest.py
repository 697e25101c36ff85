"""What the tests of the client share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.client.blocking_client import BlockingClient
from tests.client.fake_server import FakeServer, serve
from vizwiz_client import VizwizClient, cli
from vizwiz_client.cli import _parser

KINDS = (VizwizClient, BlockingClient)
Connect = Callable[..., Any]  # the arguments of a client -> one that is closed after the test


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    servicer = FakeServer()
    server, _ = serve(servicer)
    yield servicer
    servicer.gate.set()  # a test that failed may have left requests waiting at it
    server.stop(None).wait()


@pytest.fixture(params=KINDS, ids=["threads", "tasks"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Make a client: the synchronous one, or the asynchronous one behind the same methods."""
    with ExitStack() as clients:
        yield lambda *arguments, **options: clients.enter_context(request.param(*arguments, **options))


@pytest.fixture
def client(connect: Connect, fake_server: FakeServer) -> Any:
    return connect(fake_server.url, timeout_s=20)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Five photos, each of another size and colour."""
    paths = []
    for index, colour in enumerate(["red", "green", "blue", "white", "orange"]):
        paths.append(tmp_path / f"photo{index}.png")
        Image.new("RGB", (40 + index, 50), colour).save(paths[-1])
    return paths


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*(option.variable for option in _parser.OPTIONS), _parser.HEADERS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def run(no_environment: None, capsys: pytest.CaptureFixture[str]):
    """Run a command line; return exit code, lines of standard output, lines of standard error."""

    def run(*arguments: object) -> tuple[int | str | None, list[str], list[str]]:
        try:
            code: int | str | None = cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return run
