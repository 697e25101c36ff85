"""Each missing or damaged piece is refused before or while loading, with its cause and the remedy."""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from serving import ServingError, access, runtime
from serving import __main__ as command
from serving.server import EmbeddedTriton
from serving.workspace import Workspace
from tests.serving.processes import shared_memory_of
from tests.serving.tiny_repository import HEAD, IMAGE_MODEL, change_config


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every refusal leaves nothing behind but its log."""
    folder = tmp_path_factory.mktemp("tmp")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    made: list[Path] = []
    start = Workspace.__init__

    def record(workspace: Workspace) -> None:
        start(workspace)
        made.append(workspace.folder)

    monkeypatch.setattr(Workspace, "__init__", record)
    yield folder
    assert [path for path in folder.iterdir() if path.suffix != ".log"] == []
    assert [path for workspace in made for path in shared_memory_of(workspace)] == []


def refusal(repository: Path, **arguments: Any) -> str:
    """The text of the error with which a start fails."""
    with pytest.raises(ServingError) as caught, EmbeddedTriton(repository, **arguments):
        pass
    return str(caught.value)


def first_line(repository: Path) -> str:
    return refusal(repository).splitlines()[0]


def test_ports_in_use_and_given_twice(tiny_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        text = refusal(tiny_repository, grpc_port=port)
        assert text.startswith(f"port {port} (--grpc-port) cannot be used: it is in use, ")
    text = refusal(tiny_repository, http_port=port, grpc_port=port)
    assert text == f"--http-port and --grpc-port are both {port}: give each its own port, or 0 for any free one"


def test_a_port_that_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ServingError, match=r"port 80 \(--http-port\) cannot be used: this user may not .*: give"):
        access.claim_ports({"--http-port": 80}, {"--http-port": "127.0.0.1"})


@pytest.mark.parametrize(("folder", "cause"), [("no", "does not exist"), (".", "has no model vizwiz_vqa")])
def test_a_repository_that_is_missing_or_empty(
    folder: str, cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / folder
    text = refusal(repository)
    assert text.startswith(f"the model repository {repository} {cause}: publish one with `python -m export.to_onnx`")
    assert command.main([f"--repository={repository}"]) == 1
    assert capsys.readouterr().err.splitlines() == [f"serving: error: {text}"]


def _append_a_byte(model: Path) -> None:
    graph = model / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")


def _damage_the_weights(model: Path) -> None:
    weights = model / "1" / "model.onnx.data"
    weights.write_bytes(b"weights")
    (model / "SHA256SUMS").write_text(f"{'0' * 64}  1/{weights.name}\n")


def _replace_the_graph(model: Path) -> None:
    (model / "1" / "model.onnx").write_bytes(b"not ONNX")
    change_config(model, lambda config: config.parameters.clear())


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_append_a_byte, "the file is damaged or replaced; publish it again with `python -m export.to_onnx`"),
        (_damage_the_weights, "{model}/1/model.onnx.data has SHA-256 "),
        (lambda model: (model / "1" / "model.onnx").unlink(), "No such file or directory: '{model}/1/model.onnx'"),
        (_replace_the_graph, "Load model from {model}/1/model.onnx failed:Protobuf parsing failed"),
        (lambda model: (model / "answer.txt").unlink(), "failed to open text file for read {model}/answer.txt"),
        (shutil.rmtree, "'{model.name}': model not found in any model repository"),
        (
            lambda model: (model / "config.pbtxt").write_text("nonsense: 1"),
            "failed to read text proto from {model}/config.pbtxt",
        ),
        (
            lambda model: change_config(model, lambda config: setattr(config, "max_batch_size", 0)),
            "config.pbtxt has max_batch_size 0, expected at least 1",
        ),
    ],
    ids=["graph damaged", "weights damaged", "no graph", "no ONNX", "no labels", "no model", "no config", "no batches"],
)
def test_a_damaged_model(own_repository: Path, damage: Callable[[Path], Any], expected: str) -> None:
    model = own_repository / HEAD
    damage(model)
    assert expected.format(model=model) in first_line(own_repository)


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
    ids=["type", "size", "dynamic size", "rank", "names"],
)
def test_a_config_that_does_not_match_the_graph(
    own_repository: Path, model: str, edit: Callable[[Any], None], expected: str
) -> None:
    change_config(own_repository / model, edit)
    assert f"config.pbtxt does not match model.onnx: {expected}; publish it again" in first_line(own_repository)


@pytest.mark.parametrize(
    ("system", "machine", "libc"),
    [
        ("darwin", "arm64", ("", "")),
        ("linux", "aarch64", ("glibc", "2.39")),
        ("linux", "x86_64", ("glibc", "2.31")),
        ("linux", "x86_64", ("", "")),
    ],
)
def test_a_platform_without_a_wheel(system: str, machine: str, libc: tuple[str, str]) -> None:
    with pytest.raises(ServingError, match=rf"needs Linux on x86_64 .* this is {system} on {machine} with "):
        runtime.check_platform(system, machine, libc)
    runtime.check_platform("linux", "x86_64", ("glibc", "2.35"))


@pytest.mark.parametrize(("module", "package"), [("pytriton", "nvidia-pytriton"), ("onnxruntime", "onnxruntime-gpu")])
def test_a_package_that_is_not_installed(module: str, package: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from serving import runtime; runtime.find_runtime()"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"ServingError: {package} is not installed in {sys.prefix}: run `pip install " in run.stderr


def test_a_python_without_a_stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtime, "_PYTHON", "3.99")
    with pytest.raises(ServingError, match=r"no Python backend for Python 3\.99: use Python 3\.10, 3\.11 or 3\.12"):
        runtime.find_runtime().compose_backends(tmp_path / "backends")


def test_a_python_without_its_shared_library() -> None:
    found = runtime.find_runtime()
    stub = found.triton / "python_backend_stubs" / "3.8" / runtime.STUB
    with pytest.raises(ServingError, match=r"start: libpython3\.8\.so.*: No such file .*install the package libpython"):
        runtime.check_stub(stub, {"LD_LIBRARY_PATH": str(found.libraries)})


def test_a_temporary_folder_that_may_not_hold_programs(tmp_path: Path) -> None:
    stub = tmp_path / runtime.STUB
    stub.write_bytes(b"")
    stub.chmod(0o600)
    with pytest.raises(ServingError, match=r"cannot be executed \(mounted noexec\?\): set TMPDIR"):
        runtime.check_stub(stub, {})


@pytest.mark.parametrize(
    "arguments",
    [["--http-port=65536"], ["--grpc-port=-1"], ["--threads=0"], ["reload", "--to=newest"]],
    ids=" ".join,
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert f"got {arguments[-1].partition('=')[2]!r}, expected " in capsys.readouterr().err


def test_a_tuple_of_arguments_is_a_command_line_too(tiny_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(("reload", "--repository", str(tiny_repository))) == 1
    assert "no embedded server runs here" in capsys.readouterr().err


def test_a_server_has_no_addresses_before_its_start(tiny_repository: Path) -> None:
    server = EmbeddedTriton(tiny_repository)
    for attribute in ("log", "grpc_url", "http_url", "metrics_url"):
        with pytest.raises(ServingError, match=r"call start\(\) first"):
            getattr(server, attribute)
    with pytest.raises(ServingError, match=r"call start\(\) first"):
        server.wait()
