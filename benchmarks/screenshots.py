"""Screenshots of the web page for docs/gateway.md: ``python -m serving``, then ``python -m benchmarks.screenshots``.

Needs chromium and the demo's model and data (``make demo``). Writes docs/page-<state>.png.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from demo import ensure_demo_dataset
from training.dataset import read_split
from vizwiz_client import VizwizClient

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, HEIGHT = 360, 640  # of a small phone, CSS pixels
COLOURS = 48  # of a palette PNG, which stays under 60 KB


def main() -> None:
    """Ask one demo question for each outcome, and take a picture of each state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8080", help="address of the page (default: %(default)s)")
    parser.add_argument("--triton", default="localhost:8001", help="gRPC address of its Triton (default: %(default)s)")
    arguments = parser.parse_args()
    questions = choose_questions(arguments.triton)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            page.goto(arguments.url)
            if scheme == "light":
                save(page, "empty")
                page.click("#ask")
                page.wait_for_selector("#result[data-outcome=error] .sentence")
                save(page, "error")
            for outcome in ("answered", "unsure", "declined") if scheme == "light" else ("answered",):
                photo, question = questions[outcome]
                page.set_input_files("#choose", photo)
                page.fill("#question", question)
                page.press("#question", "Enter")
                page.wait_for_selector(f"#result[data-outcome={outcome}] .sentence")
                save(page, outcome if scheme == "light" else "dark")
        browser.close()


def choose_questions(triton: str) -> dict[str, tuple[Path, str]]:
    """For each outcome, a photo and a question of the demo's val split; of the declined ones, one with a reason."""
    split = read_split(ensure_demo_dataset(), "val")
    pairs = [(split.photos / record.image, record.question) for record in split.records if len(record.question) < 30]
    found: dict[str, tuple[Path, str]] = {}
    with VizwizClient(triton) as client:
        answers = client.ask_batch(pairs, top=5)
        # first the declined with a reason, and the others without
        ranked = sorted(zip(pairs, answers, strict=True), key=lambda asked: asked[1].declined != bool(asked[1].advice))
        for pair, answer in ranked:
            found.setdefault(answer.words.outcome, pair)
    return found


def save(page: Any, state: str) -> None:
    """Write docs/page-<state>.png: the whole page."""
    page.wait_for_timeout(200)  # the preview is loaded
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as image:
        small = image.convert("RGB").quantize(COLOURS)
    small.save(DOCS / f"page-{state}.png", optimize=True)
    print(f"docs/page-{state}.png: {(DOCS / f'page-{state}.png').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
