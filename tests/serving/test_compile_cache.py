"""The cache of compiled graphs: a second start loads them, and nothing in it can stop a start or give a stale graph."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from serving.cache_folder import FOLDER_VARIABLE, cache_folder, remove_cached
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


def test_a_damaged_file_is_compiled_again(accelerated: Path, cache: Path) -> None:
    serve_once(accelerated)
    [damaged] = cache.glob(f"{IMAGE_MODEL}-*")
    damaged.write_bytes(DAMAGE["one bit"](damaged.read_bytes()))
    log = serve_once(accelerated)
    assert f"{damaged} is damaged" in log
    assert f"{TEXT_MODEL} is loaded from" in log
    assert f"{IMAGE_MODEL} is loaded from" in serve_once(accelerated)


def test_two_servers_that_start_at_once_share_it(accelerated: Path, cache: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(serve_once, [accelerated] * 2))
    third = serve_once(accelerated)
    assert len(inodes(cache)) == len(MODELS)
    for model in MODELS:
        assert f"{model} is loaded from" in third


def test_a_folder_that_others_may_write_is_not_read(accelerated: Path, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    assert f"compiled models are not cached in {cache}: other users may write there" in serve_once(accelerated)
    assert list(cache.iterdir()) == []


def test_graphs_of_removed_models_are_deleted(cache: Path) -> None:
    cache.mkdir()
    for model in (*MODELS, "clip_image_0000000000001"):
        (cache / f"{model}-0123456789abcdef.openvino").touch()
    remove_cached([IMAGE_MODEL])
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
import compile_cache, openvino
core = openvino.Core()
def start(model, digest, threads=1):
    compile_cache.compile_model(core, Path(sys.argv[2]), model, digest, {"INFERENCE_NUM_THREADS": threads})
"""


def compile_in_a_process(model: Path, script: str) -> str:
    """Run ``script``, and return the log."""
    backend = ROOT / "serving" / "backends" / "onnxruntime"
    command = [sys.executable, "-c", f"{COMPILE}{script}", backend, model / "1" / "model.onnx"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_another_graph_or_option_is_another_file(tiny_repository: Path, cache: Path) -> None:
    script = 'start("m", "0a"); start("m", "0b"); start("m", "0a", 2); start("m", "0a"); start("m", None)'
    compile_in_a_process(tiny_repository / TEXT_MODEL, script)
    assert len(list(cache.iterdir())) == 3


def test_least_recently_used_files_are_deleted_first(tiny_repository: Path, cache: Path) -> None:
    compile_in_a_process(tiny_repository / TEXT_MODEL, 'start("a", "0"); start("b", "0")')
    for number, path in enumerate(sorted(cache.iterdir())):
        os.utime(path, (number, number))
        size = path.stat().st_size
    script = f'compile_cache.MAX_BYTES = {2 * size}; start("a", "0"); start("c", "0")'
    compile_in_a_process(tiny_repository / TEXT_MODEL, script)
    assert [path.name[0] for path in sorted(cache.iterdir())] == ["a", "c"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_is_found(damage: str, tiny_repository: Path, cache: Path) -> None:
    compile_in_a_process(tiny_repository / TEXT_MODEL, 'start("m", "0")')
    [file] = cache.iterdir()
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    log = compile_in_a_process(tiny_repository / TEXT_MODEL, 'start("m", "0"); print("second start:"); start("m", "0")')
    first, second = log.split("second start:")
    assert f"{file} is damaged" in first
    assert f"m is loaded from {file}" in second


def test_a_file_that_openvino_refuses_is_not_called_damaged(tiny_repository: Path, cache: Path) -> None:
    compile_in_a_process(tiny_repository / TEXT_MODEL, 'start("m", "0")')
    [file] = cache.iterdir()
    file.write_bytes(b"a blob of another format" + hashlib.sha256(b"a blob of another format").digest())
    log = compile_in_a_process(tiny_repository / TEXT_MODEL, 'start("m", "0"); start("m", "0")')
    assert f"{file} cannot be loaded (" in log
    assert "damaged" not in log
    assert f"m is loaded from {file}" in log


FAULTY = """
class Faulty:
    def __getattr__(self, name):
        return getattr(openvino.Core(), name)
    def {method}(self, *arguments):
        raise {error}
    def compile_model(self, *arguments):
        self.model = openvino.Core().compile_model(*arguments)
        return self if "{method}" == "export_model" else self.model
core = Faulty()
start("m", "0")
assert core.model.inputs
"""


@pytest.mark.parametrize(
    ("method", "error", "warning"),
    [
        ("get_versions", "StopIteration", "m is not cached: its cache key cannot be computed (StopIteration())"),
        ("export_model", "MemoryError('no memory')", "m will be compiled again at the next start: "),
    ],
)
def test_no_error_of_the_cache_fails_a_start(
    method: str, error: str, warning: str, tiny_repository: Path, cache: Path
) -> None:
    log = compile_in_a_process(tiny_repository / TEXT_MODEL, FAULTY.format(method=method, error=error))
    assert warning in log
    assert list(cache.iterdir()) == []
