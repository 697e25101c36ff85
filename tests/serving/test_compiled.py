"""The cache of compiled graphs: a second start loads them, and nothing in it can stop a start or give a stale graph."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from serving.compiled import FOLDER_VARIABLE, cache_folder, forget
from serving.server import EmbeddedTriton
from tests.conftest import ROOT
from tests.serving.test_openvino import accelerate
from tests.serving.tiny_repository import IMAGE_MODEL, SIDE, TEXT_MODEL, ask, expected_answer

pytest.importorskip("openvino", reason="OpenVINO is not installed (pip install openvino)")

MODELS = (IMAGE_MODEL, TEXT_MODEL)
DAMAGE = {
    "empty": lambda content: b"",
    "short": lambda content: content[:-1],
    "one bit": lambda content: bytes([*content[:100], content[100] ^ 1, *content[101:]]),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def accelerated(own_repository: Path) -> Path:
    for model in MODELS:
        accelerate(own_repository / model)
    return own_repository


def serve_once(repository: Path) -> str:
    """Start the server, check an answer, and return its log."""
    image, tokens = np.full((1, SIDE, SIDE, 3), 7, np.uint8), np.ones((1, 8), np.int32)
    with EmbeddedTriton(repository) as server, InferenceServerClient(server.grpc_url) as client:
        answer = ask(client, image, tokens).as_numpy("answer")
        np.testing.assert_allclose(answer, expected_answer(image, tokens), rtol=2e-2)
        return server.log.read_text(errors="replace")


def inodes(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in cache.iterdir()}


def test_a_second_start_loads_what_the_first_has_compiled(accelerated: Path, cache: Path) -> None:
    assert "is loaded from" not in serve_once(accelerated)
    written = inodes(cache)
    assert sorted(name.rpartition("-")[0] for name in written) == sorted(MODELS)
    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o600}
    log = serve_once(accelerated)
    for name in written:
        assert f"{name.rpartition('-')[0]} is loaded from {cache / name}" in log
    assert inodes(cache) == written


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_compiled_again(damage: str, accelerated: Path, cache: Path) -> None:
    serve_once(accelerated)
    [damaged] = cache.glob(f"{IMAGE_MODEL}-*")
    good = damaged.read_bytes()
    damaged.write_bytes(DAMAGE[damage](good))
    log = serve_once(accelerated)
    assert f"{damaged} is damaged" in log
    assert f"{TEXT_MODEL} is loaded from" in log
    assert f"{IMAGE_MODEL} is loaded from" in serve_once(accelerated)


def test_two_servers_that_start_at_once_share_it(accelerated: Path, cache: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        logs = list(pool.map(serve_once, [accelerated] * 2))
    assert len(logs) == 2
    assert sorted(name.rpartition("-")[0] for name in inodes(cache)) == sorted(MODELS)


def test_a_folder_that_others_may_write_is_not_read(accelerated: Path, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    assert f"compiled models are not cached in {cache}: other users may write there" in serve_once(accelerated)
    assert list(cache.iterdir()) == []


def test_models_that_are_forgotten_leave_it(cache: Path) -> None:
    cache.mkdir()
    for model in (*MODELS, "clip_image_0000000000001"):
        (cache / f"{model}-0123456789abcdef.openvino").touch()
    forget([IMAGE_MODEL])
    assert sorted(inodes(cache)) == sorted(
        f"{model}-0123456789abcdef.openvino" for model in ("clip_image_0000000000001", TEXT_MODEL)
    )


def test_it_is_a_folder_of_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/vizwiz-serving")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/her")
    assert cache_folder() == Path("/home/her/.cache/vizwiz-serving")
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    assert cache_folder() is None


COMPILE = """
import sys, types
from pathlib import Path
logger = types.SimpleNamespace(log_warn=print, log_info=print)
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace(Logger=logger)
sys.path.insert(0, sys.argv[1])
import compiled, openvino
core = openvino.Core()
def start(model, digest, threads=1):
    compiled.compile_model(core, Path(sys.argv[2]), model, digest, {"INFERENCE_NUM_THREADS": threads})
"""


def compile_in_a_process(model: Path, script: str) -> None:
    backend = ROOT / "serving" / "backends" / "onnxruntime"
    command = [sys.executable, "-c", f"{COMPILE}{script}", backend, model / "1" / "model.onnx"]
    subprocess.run(command, check=True)


def test_another_graph_or_option_is_another_file(tiny_repository: Path, cache: Path) -> None:
    script = 'start("m", "0a"); start("m", "0b"); start("m", "0a", 2); start("m", "0a"); start("m", None)'
    compile_in_a_process(tiny_repository / TEXT_MODEL, script)
    assert len(list(cache.iterdir())) == 3


def test_files_that_were_not_used_for_longest_go_first(tiny_repository: Path, cache: Path) -> None:
    compile_in_a_process(tiny_repository / TEXT_MODEL, 'start("a", "0"); start("b", "0")')
    for number, path in enumerate(sorted(cache.iterdir())):
        os.utime(path, (number, number))
        size = path.stat().st_size
    script = f'compiled.MAX_BYTES = {2 * size}; start("a", "0"); start("c", "0")'
    compile_in_a_process(tiny_repository / TEXT_MODEL, script)
    assert [path.name[0] for path in sorted(cache.iterdir())] == ["a", "c"]
