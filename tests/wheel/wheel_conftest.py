"""conftest.py of the tests where the wheel is installed alone: no torch, no export, no server to start.

A test that needs what only the checkout has is skipped, and named; one whose failure comes from the package is not.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

CHECKOUT_ONLY = {"torch", "clip", "export", "serving", "training"}
CHECKOUT_FIXTURES = {"live_server", "vizwiz", "real_annotations", "make_merges"}
IMPORTS = re.compile(
    rf"^(?:from|import) (?:{'|'.join(CHECKOUT_ONLY)}|tests\.conftest|tests\.client\.small_server)\b", re.MULTILINE
)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out modules that import the rest of the checkout."""
    is_module = collection_path.suffix == ".py" and collection_path != Path(__file__)
    return True if is_module and IMPORTS.search(collection_path.read_text(encoding="utf-8")) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what asks for a server to start, real material, or a script of the checkout."""
    for item in items:
        if missing := CHECKOUT_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(sorted(missing))} of the checkout"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call() -> Generator[None, Any, None]:
    """Skip a test whose own code, not the package's, misses a module of the checkout."""
    outcome = yield
    error = outcome.excinfo and outcome.excinfo[1]
    if isinstance(error, ModuleNotFoundError) and error.name in CHECKOUT_ONLY:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if not any("vizwiz_client" in Path(file).parts for file in files):
            outcome.force_exception(pytest.skip.Exception(f"needs {error.name}"))
