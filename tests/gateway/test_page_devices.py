"""The page by keyboard, on a phone, with a pasted or turned photo, and with the browser's speech."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import LiveServer
from tests.gateway.browser import Visit
from tests.gateway.conftest import Asked
from tests.gateway.processes import Gateway
from vizwiz_client import VizwizClient

CONTROLS = "button:visible, input:visible"
SHOWS_FOCUS = "() => getComputedStyle(document.activeElement).outlineStyle === 'solid'"

SPEECH = """
  window.spoken = [];
  const voices = [{name: 'far', lang: 'en-US', localService: false}, {name: 'near', lang: 'en-GB', localService: %s}];
  speechSynthesis.getVoices = () => voices;
  speechSynthesis.speak = (utterance) => window.spoken.push(utterance.text);
  window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text; } };
"""
DICTATION = """
  window.SpeechRecognition = class extends EventTarget {
    static async available(options) { return options.processLocally && options.langs[0] === 'en-US' ? '%s' : 'no'; }
    get processLocally() { return this.local; }
    set processLocally(local) { this.local = local; }
    start() {
      if (!this.local) throw Error('sound would leave the device');
      const results = [[{transcript: 'what is this'}]];
      for (const type of ['start', 'result', 'end']) this.dispatchEvent(Object.assign(new Event(type), {results}));
    }
  };
"""


def test_by_keyboard_alone(visit: Callable[..., Visit], demo_gateway: Gateway, asked: dict[str, Asked]) -> None:
    shown, question = visit().open(demo_gateway.url), asked["answered"]
    assert shown.tab() == ["take"]
    assert shown.page.evaluate(SHOWS_FOCUS)
    with shown.page.expect_file_chooser() as chooser:
        shown.page.keyboard.press("Enter")
    chooser.value.set_files(question.photo)
    assert shown.tab(2) == ["choose", "question"]
    shown.page.keyboard.type(question.question)
    assert shown.tab() == ["ask"]
    assert shown.page.evaluate(SHOWS_FOCUS)
    shown.page.keyboard.press("Space")
    shown.wait_for("answered")
    assert shown.tab(2) == ["another-question", "another-photo"]
    assert shown.page.evaluate(SHOWS_FOCUS)
    with shown.page.expect_file_chooser():
        shown.page.keyboard.press("Enter")
    assert shown.focus() == "take"


def test_on_a_phone(
    visit: Callable[..., Visit], demo_gateway: Gateway, asked: dict[str, Asked], tmp_path: Path
) -> None:
    shown = visit(viewport={"width": 320, "height": 640}, is_mobile=True, has_touch=True).open(demo_gateway.url)
    assert shown.overflow() == 0
    assert shown.page.get_attribute("#take", "capture") == "environment"
    photo = tmp_path / f"{'long' * 40}.jpg"
    photo.write_bytes(asked["answered"].photo.read_bytes())
    for _ in range(2):  # then there is an earlier answer, too
        shown.page.set_input_files("#choose", photo)
        shown.page.fill("#question", f"is {'that' * 40} on?")
        shown.page.tap("#ask")
        shown.page.wait_for_selector("#result .sentence")
    shown.page.wait_for_selector("#visit:not([hidden])")
    assert shown.overflow() == 0
    sizes = [control.bounding_box() for control in shown.page.locator(CONTROLS).all()]
    assert len(sizes) >= 6
    assert [size for size in sizes if size is None or min(size["width"], size["height"]) < 44] == []
    shown.page.evaluate("document.documentElement.style.fontSize = '200%'")
    assert shown.overflow() == 0


def test_a_turned_photo_is_shown_upright_and_sent_as_it_is(
    visit: Callable[..., Visit], demo_gateway: Gateway, live_server: LiveServer, asked: dict[str, Asked], tmp_path: Path
) -> None:
    turned, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    with Image.open(asked["answered"].photo) as image:
        size = image.size
        assert size[0] != size[1]
        image.rotate(90, expand=True).save(turned, exif=exif)
    with VizwizClient(live_server.grpc_url) as client:
        answer = client.ask(turned, asked["answered"].question, top=5)
    shown = visit().open(demo_gateway.url).ask(turned, asked["answered"].question)
    shown.wait_for("answered")
    assert shown.page.evaluate("[preview.naturalWidth, preview.naturalHeight]") == list(size)
    assert shown.page.locator("#details ol li").all_inner_texts() == list(answer.words.guesses)


def test_a_pasted_photo(visit: Callable[..., Visit], demo_gateway: Gateway, asked: dict[str, Asked]) -> None:
    file = io.BytesIO()
    with Image.open(asked["answered"].photo) as image:
        image.save(file, "PNG")
    shown = visit(permissions=["clipboard-read", "clipboard-write"]).open(demo_gateway.url)
    shown.page.evaluate(
        """async (data) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const item = new ClipboardItem({'image/png': new Blob([bytes], {type: 'image/png'})});
          await navigator.clipboard.write([item]);
        }""",
        base64.b64encode(file.getvalue()).decode(),
    )
    shown.page.focus("#question")
    shown.page.keyboard.press("Control+V")
    shown.page.wait_for_selector("#preview:not([hidden])")
    assert shown.said() == ["Photo: image.png"]
    assert shown.ask(None, asked["answered"].question).wait_for("answered").startswith(asked["answered"].words.headline)


def test_a_pasted_cell_of_a_table_is_text(visit: Callable[..., Visit], demo_gateway: Gateway) -> None:
    """Spreadsheets put a picture of the cell beside its text."""
    shown = visit(permissions=["clipboard-read", "clipboard-write"]).open(demo_gateway.url)
    shown.page.evaluate(
        """async () => {
          const canvas = Object.assign(document.createElement('canvas'), {width: 32, height: 32});
          const picture = await new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
          const text = new Blob(['what is this?'], {type: 'text/plain'});
          await navigator.clipboard.write([new ClipboardItem({'image/png': picture, 'text/plain': text})]);
        }"""
    )
    shown.page.focus("#question")
    shown.page.keyboard.press("Control+V")
    assert shown.page.input_value("#question") == "what is this?"
    assert not shown.page.is_visible("#preview")


class TestSpeech:
    def test_answers_are_spoken_once_asked_for(
        self, visit: Callable[..., Visit], demo_gateway: Gateway, asked: dict[str, Asked]
    ) -> None:
        shown, question = visit(script=SPEECH % "true").open(demo_gateway.url), asked["answered"]
        expected = " ".join(question.words.lines)
        shown.ask(question.photo, question.question).wait_for("answered")
        assert shown.page.evaluate("spoken") == []
        shown.page.click("#speak")
        assert shown.page.evaluate("spoken") == [expected]
        assert shown.violations() == []
        shown.open(demo_gateway.url)  # the choice is remembered on the device
        shown.ask(question.photo, question.question).wait_for("answered")
        assert shown.page.evaluate("spoken") == [expected]
        shown.page.click("#speak")
        shown.page.press("#question", "Enter")
        shown.page.wait_for_selector("#visit:not([hidden])")
        shown.wait_for("answered")
        assert shown.page.evaluate("spoken") == [expected]

    def test_no_voice_of_a_third_party(self, visit: Callable[..., Visit], demo_gateway: Gateway) -> None:
        shown = visit(script=SPEECH % "false").open(demo_gateway.url)
        assert not shown.page.is_visible("#speak")

    def test_dictation_on_the_device(self, visit: Callable[..., Visit], demo_gateway: Gateway) -> None:
        shown = visit(script=DICTATION % "available").open(demo_gateway.url)
        shown.page.click("#dictate")
        assert shown.page.input_value("#question") == "what is this"
        assert shown.focus() == "question"
        assert not shown.page.is_visible("#dictation-hint")
        assert shown.violations() == []

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            ("no-speech", "Nothing was understood."),
            ("not-allowed", "The browser may not use the microphone."),
            ("aborted", None),
        ],
    )
    def test_dictation_that_fails(
        self, visit: Callable[..., Visit], demo_gateway: Gateway, error: str, sentence: str | None
    ) -> None:
        fail = f"Object.assign(new Event('error'), {{error: '{error}'}})"
        script = (DICTATION % "available").replace("start() {", f"start() {{ return this.dispatchEvent({fail});")
        shown = visit(script=script).open(demo_gateway.url)
        shown.page.click("#dictate")
        assert shown.page.get_attribute("#dictate", "aria-pressed") == "true"
        if sentence:
            assert shown.wait_for("error").startswith(sentence)
        else:
            assert shown.page.get_attribute("#result", "data-outcome") == "empty"

    @pytest.mark.parametrize("script", [None, DICTATION % "downloadable"], ids=["as it is", "downloadable"])
    def test_no_dictation_by_a_third_party(
        self, visit: Callable[..., Visit], demo_gateway: Gateway, script: str | None
    ) -> None:
        shown = visit(script=script).open(demo_gateway.url)
        assert not shown.page.is_visible("#dictate")
        assert "use the microphone of your keyboard" in shown.text("#question-hint")
