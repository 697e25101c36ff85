"""The wheel: what is in it, and that it works where it and what it requires are installed, and nothing else."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, LiveServer

PACKAGES = {"vizwiz_client": ROOT / "client", "vizwiz_gateway": ROOT / "gateway"}
HEAVY = ["torch", "torchvision", "onnx", "onnxruntime", "clip", "training", "export", "serving"]
PROJECT_FILES = ["pyproject.toml", "README.md", "LICENSE"]
TEST_TOOLS = ["pytest>=8", "hypothesis>=6.100", "trustme>=1.1"]
# pixels, tokens, words, questions and their errors, the documented examples: every module and data file of the client
MAIN_TESTS = ["client/test_client.py", "client/test_many.py", "client/test_docs.py", "contract"]
PYTHONS = [f"python3.{minor}" for minor in range(10, 14)]


def run(*command: object, **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-5_000:]
    return done.stdout


def pip(python: object, *arguments: object) -> str:
    """Run pip; skip the test when there is no index to install from."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if re.search(r"NewConnectionError|ConnectTimeout|NameResolutionError|Network is unreachable", done.stderr):
        pytest.skip(f"no package index answers: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-5_000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build writes files beside its sources."""
    source = tmp_path_factory.mktemp("source")
    for name in PROJECT_FILES:
        shutil.copy(ROOT / name, source)
    for folder in PACKAGES.values():
        shutil.copytree(folder, source / folder.name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    pip(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", source / "dist", source)
    (wheel,) = (source / "dist").iterdir()
    return wheel


class Environment:
    """An empty virtual environment of ``python`` in which the wheel is installed as a user does it."""

    def __init__(self, folder: Path, wheel: Path, python: str, *others: str) -> None:
        self.folder = folder
        run(python, "-m", "venv", "--without-pip", folder / "venv")
        self.bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.bin / "python"
        install = ("install", "--quiet", "--no-compile", "--only-binary=:all:")
        pip(sys.executable, "--python", self.python, *install, wheel, *others)

    def test(self, *files: str) -> tuple[int, str]:
        """Run the tests that need the package alone, or some files of them; return how many passed, and the report."""
        for name in ("client", "contract"):
            shutil.copytree(ROOT / "tests" / name, self.folder / "tests" / name)
        shutil.copy(ROOT / "tests" / "wheel" / "wheel_conftest.py", self.folder / "tests" / "conftest.py")
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, self.folder)
        shutil.copytree(ROOT / "docs", self.folder / "docs")
        options = ("-q", "-m", "not slow", "-p", "no:cacheprovider", *(f"tests/{file}" for file in files))
        report = run(self.python, "-m", "pytest", *options, cwd=self.folder)
        passed = re.search(r"(\d+) passed", report)
        return int(passed[1]) if passed else 0, report


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("empty"), wheel, sys.executable, *TEST_TOOLS)


class TestContents:
    def test_it_is_for_every_platform(self, wheel: Path) -> None:
        assert re.fullmatch(r"vizwiz_client-[\d.]+-py3-none-any\.whl", wheel.name)

    def test_it_holds_the_packages_and_their_data_alone(self, wheel: Path) -> None:
        names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        tracked = {
            f"{name}/{file}"
            for name, folder in PACKAGES.items()
            for file in run("git", "ls-files", "-co", "--exclude-standard", ".", cwd=folder / name).splitlines()
        }
        assert names == tracked
        assert {"vizwiz_client/py.typed", "vizwiz_client/cli/__init__.py", "vizwiz_gateway/static/page.css"} < names
        assert any(name.startswith("vizwiz_client/contract/clip_merges") for name in names)

    def test_its_metadata(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = archive.read(name).decode()
        required = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, re.MULTILINE)
        assert set(required) == {"numpy", "pillow", "tritonclient", "ftfy", "regex", "tqdm"}
        assert set(re.search(r"^Requires-Python: (.*)$", metadata, re.MULTILINE)[1].split(",")) == {">=3.10", "<3.14"}


class TestAlone:
    def test_nothing_heavy_comes_along(self, environment: Environment) -> None:
        found = f"import importlib.util as u; print([name for name in {HEAVY} if u.find_spec(name)])"
        assert run(environment.python, "-I", "-c", found).strip() == "[]"
        assert importlib.util.find_spec("torch")  # which this environment has: the question can be answered otherwise

    def test_the_command_asks_a_real_server(self, environment: Environment, live_server: LiveServer) -> None:
        photo = next((live_server.data / "val").iterdir())
        command = environment.bin / "vizwiz-client"
        lines = run(command, "status", "--url", live_server.grpc_url, "--max-latency", "60").splitlines()
        assert [line.split(":")[0] for line in lines] == ["server", "models", "contract", "latency"]
        assert run(command, "ask", photo, "what is this?", "--url", live_server.grpc_url).strip()

    def test_its_main_tests_pass(self, environment: Environment) -> None:
        """All of them run in the slow tests, on each Python."""
        passed, report = environment.test(*MAIN_TESTS)
        assert passed >= 100, report


@pytest.fixture(params=PYTHONS)
def each_python(request: pytest.FixtureRequest) -> Iterator[str]:
    python = shutil.which(request.param)
    if python is None or subprocess.run([python, "-V"], capture_output=True).returncode:
        pytest.skip(f"no {request.param} on PATH")
    return python


@pytest.mark.slow
def test_all_its_tests_pass_on_each_python(each_python: str, wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, each_python, *TEST_TOOLS)
    passed, report = environment.test()
    assert passed >= 300, report
