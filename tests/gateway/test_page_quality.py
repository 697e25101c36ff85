"""A declined photo in a real browser: the page says what is wrong and what to do, and offers another photo."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.client.small_server import SmallServer, add_quality
from tests.gateway.browser import Visit
from tests.gateway.processes import Gateway
from tests.serving.tiny_repository import HEAD
from vizwiz_client.contract.wording import UNANSWERABLE_LABELS

ADVICE = [
    "Part of the object is out of view. Move the phone back.",
    "The photo is too dark. Turn on a light.",
    "Then take another photo.",
]


@pytest.fixture(scope="module")
def quality_gateway(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose model declines every question, and predicts quality."""
    repository = Path(shutil.copytree(small_repository, tmp_path_factory.mktemp("quality") / "models"))
    add_quality(repository, HEAD)
    (repository / HEAD / "answer.txt").write_text("".join(f"{label}\n" for label in UNANSWERABLE_LABELS))
    with SmallServer(repository) as triton, Gateway(triton.grpc_url) as gateway:
        yield gateway


@pytest.fixture
def green_blue(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), (0, 200, 150)).save(path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_declined_photo(visit: Callable[..., Visit], quality_gateway: Gateway, green_blue: Path, scheme: str) -> None:
    shown = visit(color_scheme=scheme).open(quality_gateway.url).ask(green_blue, "what is this?")
    lines = ["The photo cannot answer this.", *ADVICE]
    assert shown.wait_for("declined") == "\n".join(lines)
    assert shown.said()[-1] == " ".join(lines)
    shown.page.click("summary")
    problems = shown.page.locator("#details ul li").all_inner_texts()
    assert [problem.partition(",")[0] for problem in problems] == ["badly framed", "too dark", "blurred"]
    assert shown.violations() == []
    shown.page.focus("#another-question")
    assert shown.tab() == ["another-photo"]
    assert shown.page.get_attribute("#another-photo", "class") == "main"
    with shown.page.expect_file_chooser():
        shown.page.keyboard.press("Enter")
    assert shown.focus() == "choose"


def test_without_script(visit: Callable[..., Visit], quality_gateway: Gateway, green_blue: Path) -> None:
    shown = visit(java_script_enabled=False)
    shown.page.goto(quality_gateway.url)
    shown.ask(green_blue, "what is this?")
    assert shown.wait_for("declined") == "\n".join(["The photo cannot answer this.", *ADVICE])
    assert shown.page.locator("button:visible").all_inner_texts() == ["Ask"]
    shown.page.get_by_role("link", name="Take another photo.").click()
    assert shown.page.locator("#take:focus").count() == 1


def test_rest(quality_gateway: Gateway, green_blue: Path) -> None:
    answer = quality_gateway.ask(green_blue.read_bytes(), "what is this?").json()["answers"][0]
    assert answer["sentence"] == " ".join(["The photo cannot answer this.", *ADVICE])
    assert answer["advice"] == ADVICE[:2]
    assert list(answer["quality"]) == ["framing", "dark", "blur"]
