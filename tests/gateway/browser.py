"""The page in Debian's chromium: a visit, and what a screen reader would be told during it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REQUIRED = "VIZWIZ_REQUIRE_BROWSER"  # environment variable: fail where there is no browser, instead of skipping
STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
TIMEOUT_MS = 60_000  # the machine may be busy

# Records what the live regions say. They are emptied before they speak, so that equal sentences are announced twice.
_LISTEN = """() => {
  window.said = [];
  for (const region of document.querySelectorAll('[role=status]')) {
    new MutationObserver(() => region.innerText.trim() && window.said.push(region.innerText.trim()))
      .observe(region, {childList: true, characterData: true, subtree: true});
  }
}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless chromium. Skips the test where there is none; fails it if VIZWIZ_REQUIRE_BROWSER is set."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        reason = "there is no chromium on this machine (Debian: apt-get install chromium)"
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]  # as root, and in containers
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@dataclass
class Visit:
    """One visit of the page.

    Attributes:
        page: Playwright's page.
        requests: addresses that the page requested.
        faults: errors of the script, and what the content security policy blocked.
    """

    page: Any
    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._on_console)
        # Playwright intercepts file choosers while somebody listens. One that listens late can miss the key press.
        self.page.on("filechooser", lambda _: None)

    def _on_console(self, message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.faults.append(message.text)

    def open(self, url: str) -> Visit:
        """Load the page and listen to its live regions."""
        self.page.goto(url)
        self.page.evaluate(_LISTEN)
        return self

    def ask(self, photo: Path | dict[str, Any] | None, question: str) -> Visit:
        """Choose ``photo``, type ``question`` and press Enter."""
        if photo:
            self.page.set_input_files("#choose", photo)
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        return self

    def wait_for(self, outcome: str) -> str:
        """Wait for the live region to show ``outcome``; return its text, a sentence a line."""
        self.page.wait_for_selector(f"#result[data-outcome={outcome}] .sentence")
        return self.text("#result")

    def text(self, selector: str) -> str:
        """The visible text, without blank lines."""
        return "\n".join(line for line in self.page.inner_text(selector).splitlines() if line.strip())

    def said(self) -> list[str]:
        """What the live regions announced, in order; one entry for equal ones in a row of one announcement."""
        return [" ".join(text.split()) for text in self.page.evaluate("window.said")]

    def focus(self) -> str:
        """The id of the focused element."""
        return str(self.page.evaluate("document.activeElement.id"))

    def tab(self, times: int = 1) -> list[str]:
        """Press Tab and return the ids of the elements that got the focus."""
        ids = []
        for _ in range(times):
            self.page.keyboard.press("Tab")
            ids.append(self.focus())
        return ids

    def violations(self) -> Sequence[str]:
        """What axe-core finds wrong with the page as it is."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page, options={"runOnly": STANDARDS}).response["violations"]
        return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]

    def overflow(self) -> int:
        """By how many CSS pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
