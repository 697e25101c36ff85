"""The preprocess model itself: when it refuses to load, and what it logs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, LiveServer
from tests.serving.test_refusals import first_line
from tests.serving.tiny_repository import change_config
from vizwiz_client.contract import tensors


@pytest.fixture
def preprocess_alone(own_repository: Path, live_server: LiveServer) -> Path:
    """The tiny repository, and an ensemble that has the preprocess model for one more step: quick to load."""
    (source,) = live_server.repository.glob("preprocess_*")
    shutil.copytree(source, own_repository / source.name)
    raw = Path(shutil.copytree(own_repository / tensors.ENSEMBLE, own_repository / tensors.RAW_ENSEMBLE))

    def add_a_step(config: Any) -> None:
        config.name = tensors.RAW_ENSEMBLE
        step = config.ensemble_scheduling.step.add(model_name=source.name, model_version=-1)
        for spec in (tensors.IMAGE_BYTES, tensors.QUESTION):
            config.input.add(name=spec.name, data_type="TYPE_STRING", dims=[1])
            step.input_map[spec.name] = spec.name
        config.output.add(name=tensors.ERROR.name, data_type="TYPE_STRING", dims=[1])
        step.output_map[tensors.ERROR.name] = tensors.ERROR.name

    change_config(raw, add_a_step)
    return own_repository / source.name


def test_an_altered_preprocess_model_is_refused(preprocess_alone: Path) -> None:
    model = preprocess_alone / "1" / "model.py"
    model.write_text(model.read_text() + "\n")
    line = first_line(preprocess_alone.parent)
    assert f"failed to load '{preprocess_alone.name}' version 1: " in line
    assert f"{model} has SHA-256 " in line
    assert "damaged or another one; publish it again with `python -m export.to_onnx`" in line


def test_a_package_of_another_contract_is_refused(preprocess_alone: Path) -> None:
    change_config(
        preprocess_alone, lambda config: setattr(config.parameters["contract_version"], "string_value", "999")
    )
    line = first_line(preprocess_alone.parent)
    assert "was exported for contract version 999, the installed vizwiz-client has 1 (" in line
    assert "install the one that the repository was exported with, or export again" in line


def test_a_missing_package_is_told() -> None:
    program = """
import sys, types
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace()
sys.modules["vizwiz_client"] = None  # as if it were not installed
sys.path.insert(0, sys.argv[1])
import preprocess_model
"""
    command = [sys.executable, "-c", program, ROOT / "export"]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "the model needs the package vizwiz-client in the Python that Triton's Python backend runs" in run.stderr
    assert "`pip install vizwiz-client` there" in run.stderr


def test_what_no_decoder_foresees_is_logged_with_the_request_and_without_the_photo() -> None:
    program = """
import sys, types
logger = types.SimpleNamespace(log_error=lambda text: print(text, file=sys.stderr))
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace(Logger=logger)
sys.path.insert(0, sys.argv[1])
import preprocess_model

def fail(file):
    raise ZeroDivisionError("what the photo shows")

preprocess_model.load_photo = fail
for request_id in ("ask-4711", ""):
    print(preprocess_model.prepare(preprocess_model.Ask(bytes([255]), b"question", request_id), 8).error.decode())
"""
    command = [sys.executable, "-c", program, ROOT / "export"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert run.stderr.splitlines() == [
        "preprocess: ZeroDivisionError of an item of request ask-4711",
        "preprocess: ZeroDivisionError of an item of request <no id>",
    ]
    assert run.stdout.count("cannot be processed (ZeroDivisionError); send another") == 2
