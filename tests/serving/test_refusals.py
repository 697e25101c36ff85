"""Each missing or spoilt piece is refused before or while loading, with its cause and the way out."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from serving import __main__ as command
from serving import runtime, watch
from serving.errors import ServingError
from serving.server import EmbeddedTriton
from serving.workspace import Workspace
from tests.serving.tiny_repository import HEAD, IMAGE_MODEL, TEXT_MODEL, change_config


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every refusal leaves nothing behind but its log."""
    folder = tmp_path_factory.mktemp("tmp")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    made: list[str] = []
    start = Workspace.__init__

    def record(workspace: Workspace) -> None:
        start(workspace)
        made.append(workspace.folder.name)

    monkeypatch.setattr(Workspace, "__init__", record)
    yield folder
    assert [path for path in folder.iterdir() if path.suffix != ".log"] == []
    assert [path for name in made for path in Path("/dev/shm").glob(f"{name}*")] == []


def refusal(repository: Path, **arguments: Any) -> str:
    """The text of the error with which a start fails."""
    with pytest.raises(ServingError) as caught, EmbeddedTriton(repository, **arguments):
        pass
    return str(caught.value)


def first_line(repository: Path) -> str:
    return refusal(repository).splitlines()[0]


def test_a_port_that_is_taken(tiny_repository: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert refusal(tiny_repository, grpc_port=port) == (
            f"port {port} (--grpc-port) cannot be used: it is taken, by another `python -m serving` perhaps: stop "
            "that, or give --grpc-port another port, 0 for any free one"
        )


def test_one_port_for_two_services(tiny_repository: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert f"port {port} (--grpc-port) cannot be used" in refusal(tiny_repository, http_port=port, grpc_port=port)


def test_a_repository_that_is_not_there_or_empty(tmp_path: Path) -> None:
    remedy = "publish one with `python -m export.to_onnx`, or name another one with --repository"
    assert refusal(tmp_path / "no") == f"the model repository {tmp_path / 'no'} does not exist: {remedy}"
    assert refusal(tmp_path) == f"the model repository {tmp_path} has no model vizwiz_vqa: {remedy}"


def test_the_command_says_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.main([f"--repository={tmp_path}"]) == 1
    assert capsys.readouterr().err.splitlines()[1:] == [f"serving: error: {refusal(tmp_path)}"]
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert command.main([f"--repository={tmp_path}"]) == 1
    assert capsys.readouterr().err.splitlines()[1:] == [f"serving: error: {refusal(tmp_path)}"]


def test_a_graph_that_is_not_the_one_of_the_config(own_repository: Path) -> None:
    graph = own_repository / TEXT_MODEL / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    line = first_line(own_repository)
    assert line.startswith(f"Triton cannot serve {own_repository}: failed to load '{TEXT_MODEL}' version 1: ")
    assert f"{graph} has SHA-256 " in line
    assert line.endswith("damaged or another one; publish it again with `python -m export.to_onnx`")


def test_a_graph_that_is_missing(own_repository: Path) -> None:
    graph = own_repository / HEAD / "1" / "model.onnx"
    graph.unlink()
    assert f"failed to load '{HEAD}' version 1: " in first_line(own_repository)
    assert f"No such file or directory: '{graph}'" in first_line(own_repository)


def test_a_graph_that_is_not_onnx(own_repository: Path) -> None:
    graph = own_repository / HEAD / "1" / "model.onnx"
    graph.write_bytes(b"not ONNX")
    change_config(graph.parents[1], lambda config: config.parameters.clear())
    assert f"Load model from {graph} failed:Protobuf parsing failed" in first_line(own_repository)


def test_labels_that_are_missing(own_repository: Path) -> None:
    labels = own_repository / HEAD / "answer.txt"
    labels.unlink()
    assert f"failed to open text file for read {labels}" in first_line(own_repository)


def test_a_step_that_is_missing(own_repository: Path) -> None:
    shutil.rmtree(own_repository / HEAD)
    assert f"'{HEAD}': model not found in any model repository" in first_line(own_repository)


def test_a_config_that_triton_cannot_read(own_repository: Path) -> None:
    (own_repository / HEAD / "config.pbtxt").write_text("nonsense: 1")
    text = refusal(own_repository)
    assert f"failed to read text proto from {own_repository / HEAD / 'config.pbtxt'}" in text.splitlines()[0]
    assert 'has no field named "nonsense"' in text


@pytest.mark.parametrize(
    ("model", "edit", "expected"),
    [
        (
            IMAGE_MODEL,
            lambda config: setattr(config.input[0], "data_type", pb.TYPE_FP32),
            "input 'image' is tensor(float) [-1, 4, 4, 3] in the config and tensor(uint8) [-1, 4, 4, 3] in the graph",
        ),
        (
            HEAD,
            lambda config: config.output[0].dims.__setitem__(0, 4),
            "output 'answer' is tensor(float) [-1, 4] in the config and tensor(float) [-1, 3] in the graph",
        ),
        (
            HEAD,
            lambda config: config.output[0].dims.__setitem__(0, -1),
            "output 'answer' is tensor(float) [-1, -1] in the config and tensor(float) [-1, 3] in the graph",
        ),
        (
            HEAD,
            lambda config: config.output[3].dims.append(1),
            "output 'head_id' is tensor(int64) [-1, 1, 1] in the config and tensor(int64) [-1, 1] in the graph",
        ),
        (
            HEAD,
            lambda config: setattr(config.output[2], "name", "sure"),
            "output 'answerable' is absent in the config and tensor(float) [-1, 1] in the graph; "
            "output 'sure' is tensor(float) [-1, 1] in the config and absent in the graph",
        ),
    ],
    ids=["type", "size", "free size", "rank", "names"],
)
def test_a_config_that_does_not_describe_the_graph(
    own_repository: Path, model: str, edit: Callable[[Any], None], expected: str
) -> None:
    change_config(own_repository / model, edit)
    line = first_line(own_repository)
    assert f"config.pbtxt does not describe model.onnx: {expected}; publish it again" in line


def test_a_config_without_batches(own_repository: Path) -> None:
    change_config(own_repository / TEXT_MODEL, lambda config: setattr(config, "max_batch_size", 0))
    assert "config.pbtxt has max_batch_size 0, expected at least 1" in first_line(own_repository)


@pytest.mark.parametrize(
    ("system", "machine", "libc", "got"),
    [
        ("darwin", "arm64", ("", ""), "this is darwin on arm64 with an unknown C library"),
        ("linux", "aarch64", ("glibc", "2.39"), "this is linux on aarch64 with glibc 2.39"),
        ("linux", "x86_64", ("glibc", "2.31"), "this is linux on x86_64 with glibc 2.31"),
        ("linux", "x86_64", ("", ""), "this is linux on x86_64 with an unknown C library"),
    ],
)
def test_a_platform_that_the_wheel_is_not_for(system: str, machine: str, libc: tuple[str, str], got: str) -> None:
    with pytest.raises(
        ServingError, match=r"^the embedded Triton needs Linux on x86_64 with glibc 2\.35 or newer"
    ) as e:
        runtime.check_platform(system, machine, libc)
    assert f"{got}: serve the same repository with NVIDIA's Triton container instead" in str(e.value)


def test_a_platform_that_the_wheel_is_for() -> None:
    runtime.check_platform("linux", "x86_64", ("glibc", "2.35"))


@pytest.mark.parametrize(("module", "package"), [("pytriton", "nvidia-pytriton"), ("onnxruntime", "onnxruntime-gpu")])
def test_a_package_that_is_not_installed(module: str, package: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from serving import runtime; runtime.find_runtime()"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"ServingError: {package} is not installed in {sys.prefix}: run `pip install -e '.[serve]'`" in run.stderr


def test_a_python_for_which_there_is_no_stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtime, "_PYTHON", "3.99")
    with pytest.raises(ServingError, match=r"no Python backend for Python 3\.99: use Python 3\.10, 3\.11 or 3\.12"):
        runtime.find_runtime().compose_backends(tmp_path / "backends")


def test_a_python_without_its_shared_library() -> None:
    found = runtime.find_runtime()
    stub = found.triton / "python_backend_stubs" / "3.8" / watch.STUB
    with pytest.raises(ServingError, match=r"start: libpython3\.8\.so.*: No such file .*install the package libpython"):
        runtime.check_stub(stub, {"LD_LIBRARY_PATH": str(found.libraries)})


def test_a_temporary_folder_that_may_not_hold_programs(tmp_path: Path) -> None:
    stub = tmp_path / watch.STUB
    stub.write_bytes(b"")
    stub.chmod(0o600)
    with pytest.raises(ServingError, match=r"may not hold programs \(mounted noexec\?\): set TMPDIR"):
        runtime.check_stub(stub, {})


@pytest.mark.parametrize(("flag", "value"), [("--http-port", "65536"), ("--grpc-port", "-1"), ("--threads", "0")])
def test_numbers_out_of_range(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main([f"{flag}={value}"])
    assert caught.value.code == 2
    assert f"argument {flag}: got '{value}', expected a whole number from" in capsys.readouterr().err
