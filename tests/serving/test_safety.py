"""What others on the machine may do, and what of a question stays behind."""

from __future__ import annotations

import http.client
import json
import re
import socket
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from serving import ServingError
from serving import __main__ as command
from serving.access import (
    EXPOSE_FLAG,
    GRPC_HEADER,
    HTTP_HEADER,
    KEY_VARIABLE,
    RunningServer,
    admin_key,
    check_host,
    find_server,
    request_http,
)
from serving.rollout import rollout
from serving.server import EmbeddedTriton
from tests.serving.processes import Command, is_ready
from tests.serving.tiny_repository import HEAD, SIDE, TEXT_MODEL, TOKEN_VALUES, ask
from vizwiz_client.contract import tensors

# the admin key


CLOSED = [
    ("POST", "repository/index"),
    ("POST", f"repository/models/{HEAD}/load"),
    ("POST", f"repository/models/{tensors.ENSEMBLE}/unload"),
    ("GET", "systemsharedmemory/status"),
    ("POST", "systemsharedmemory/region/x/register"),
    ("GET", "cudasharedmemory/status"),
    ("GET", "trace/setting"),
    ("POST", "trace/setting"),
    ("GET", "logging"),
    ("POST", "logging"),
]
OPEN = [
    f"models/{tensors.ENSEMBLE}/versions/1/ready",
    "health/live",
    f"models/{tensors.ENSEMBLE}",
    f"models/{tensors.ENSEMBLE}/config",
    f"models/{tensors.ENSEMBLE}/ready",
    f"models/{TEXT_MODEL}/stats",
]


def key_of(server: EmbeddedTriton) -> str:
    found = find_server(server.grpc_url)
    assert found is not None
    return found.key


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_admin_apis_need_the_key_over_http(server: EmbeddedTriton, method: str, path: str) -> None:
    for headers in ({}, {HTTP_HEADER: "guessed"}, {HTTP_HEADER: ""}):
        status, body = request_http(server.http_url, method, path, headers)
        assert status == 403
        assert b"This API is restricted" in body
    assert is_ready(server.http_url)


def test_admin_apis_need_the_key_over_grpc(server: EmbeddedTriton) -> None:
    region = {"name": "x", "key": "/x", "byte_size": 1}
    closed: dict[str, Any] = {
        "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
        "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name=HEAD),
        "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name=tensors.ENSEMBLE),
        "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
        "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(**region),
        "CudaSharedMemoryStatus": service_pb2.CudaSharedMemoryStatusRequest(),
        "TraceSetting": service_pb2.TraceSettingRequest(),
        "LogSettings": service_pb2.LogSettingsRequest(),
    }
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name, request in closed.items():
            with pytest.raises(grpc.RpcError, match=f"restricted, expecting header '{GRPC_HEADER}'"):
                getattr(stub, name)(request, timeout=20, metadata=[(GRPC_HEADER, "guessed")])
        stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=20)
        stub.ModelConfig(service_pb2.ModelConfigRequest(name=tensors.ENSEMBLE), timeout=20)
        index = service_pb2.RepositoryIndexRequest()
        assert stub.RepositoryIndex(index, timeout=20, metadata=[(GRPC_HEADER, key_of(server))]).models


def test_other_apis_need_no_key(server: EmbeddedTriton) -> None:
    assert {path: request_http(server.http_url, "GET", path)[0] for path in OPEN} == dict.fromkeys(OPEN, 200)


def test_other_users_cannot_read_the_key(server: EmbeddedTriton) -> None:
    key = key_of(server)
    assert (server.log.with_name("server.json").stat().st_mode & 0o777) == 0o600
    assert len(key) >= 40
    command_line = Path(f"/proc/{server._process.pid}/cmdline").read_bytes()  # which every user can read
    assert f"{HTTP_HEADER}=".encode() in command_line, "it is given in another way: the test proves nothing"
    assert key.encode() not in command_line
    assert key not in server.log.read_text()


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "thirty-two-letters-or-so-for-a-key")
    assert admin_key() == "thirty-two-letters-or-so-for-a-key"
    for wrong in ("short", "a key with spaces in it", "ключ-из-букв-которых-нет", ""):
        monkeypatch.setenv(KEY_VARIABLE, wrong)
        with pytest.raises(ServingError, match=f"{KEY_VARIABLE} holds {len(wrong)} characters, expected 32 or more of"):
            admin_key()
    monkeypatch.delenv(KEY_VARIABLE)
    assert admin_key() != admin_key()


def test_of_several_servers_the_one_of_this_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (
        RunningServer(f"127.0.0.1:{port}", "", str(tmp_path / folder / "triton_models"), "")
        for port, folder in ((1, "ours"), (2, "theirs"))
    )
    for folder in ("ours", "elsewhere"):
        (tmp_path / folder).mkdir()
    for module in ("access", "rollout"):
        monkeypatch.setattr(f"serving.{module}.find_servers", lambda: [theirs, ours])
    monkeypatch.chdir(tmp_path / "ours")
    assert find_server() == ours
    assert find_server("localhost:2") == theirs
    with pytest.raises(ServingError, match=r"localhost:9 is not the gRPC address of an embedded server here"):
        rollout("localhost:9")
    with pytest.raises(ServingError, match=r"no embedded server here serves elsewhere; there are 127\.0\.0\.1:2 "):
        rollout(repository=Path("elsewhere"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ServingError, match=r"several .* match: 127\.0\.0\.1:2 .*, 127\.0\.0\.1:1 .*select one with"):
        rollout()


# addresses


def test_only_this_machine_can_reach_it(server: EmbeddedTriton) -> None:
    metrics = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
    for address in (server.http_url, server.grpc_url, metrics):
        host, port = address.split(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=5).close()
        with socket.socket() as other:
            other.bind(("127.0.0.2", int(port)))  # fails where a server listens on every address


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7"])
def test_another_interface_needs_the_flag(host: str, tiny_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([f"--repository={tiny_repository}", f"--host={host}"]) == 1
    said = capsys.readouterr().err
    assert f"serving: error: other machines can reach {host}" in said
    assert "CVE-2025-23319" in said
    assert EXPOSE_FLAG in said
    with pytest.raises(ServingError, match="other machines can reach"):
        EmbeddedTriton(tiny_repository, host=host).start()


def test_addresses() -> None:
    for wrong in ("localhost", "::1", "", "300.1.1.1"):
        with pytest.raises(ServingError, match="expected an IPv4 address of this machine"):
            check_host(wrong, expose=True)
    check_host("127.0.0.2", expose=False)
    check_host("0.0.0.0", expose=True)


def test_the_flag_exposes_it_and_warns(tiny_repository: Path) -> None:
    with Command(tiny_repository, "--host=0.0.0.0", EXPOSE_FLAG) as served:
        http_port = served.addresses["http"].split(":")[1]
        metrics_port = served.addresses["metrics"].split(":")[2].split("/")[0]
        assert request_http(f"127.0.0.2:{http_port}", "GET", "health/ready")[0] == 200
        with pytest.raises(ConnectionRefusedError):  # metrics stay on loopback
            request_http(f"127.0.0.2:{metrics_port}", "GET", "metrics")
        served.process.terminate()
        said = served.end()
    assert f"warning: {EXPOSE_FLAG} lets other machines reach this server" in said


# privacy


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the servers that a test starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


SECRET_PIXELS = b"SECRET-PHOTO"
SECRET_TOKENS = np.array([[40007, 40009, 40013, 40031, 40037, 40039, 40063, 40087]], np.int32)
# two in a row: a single one may be a port's number, or part of a time
WRITTEN_TOKENS = b"|".join(rb"%d\D{1,3}%d" % pair for pair in pairwise(SECRET_TOKENS[0].tolist()))
SECRET_ANSWER = "blue: dark"


def traces(served: Command, temporary: Path) -> bytes:
    """All files in ``temporary`` and in shared memory, except the server's models and its regions there."""
    excluded = {*(served.folder / "models").rglob("*"), *served.shared_memory()}
    files = {path for folder in (temporary, Path("/dev/shm")) for path in folder.rglob("*") if path.is_file()}
    return b"".join(map(_content, sorted(files - excluded)))


def _content(path: Path) -> bytes:
    with suppress(FileNotFoundError, PermissionError):  # of other servers, which come and go, and of other users
        return path.read_bytes()
    return b""


def post(address: str, ensemble: str, body: str) -> bytes:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", f"/v2/models/{ensemble}/infer", body)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_no_photo_question_or_answer_stays_behind(tiny_repository: Path, temporary: Path) -> None:
    """Not in the verbose log, nor in a file; in shared memory no longer than the server lives."""
    image = np.frombuffer(SECRET_PIXELS * 4, np.uint8).reshape(1, SIDE, SIDE, 3)
    secrets = [SECRET_PIXELS, SECRET_TOKENS.tobytes(), SECRET_ANSWER.encode()]
    inputs = [
        {"name": "image", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 3], "data": image.ravel().tolist()},
        {"name": "tokens", "datatype": "INT32", "shape": [1, 8], "data": SECRET_TOKENS.ravel().tolist()},
    ]
    body = json.dumps({"inputs": inputs})
    with Command(tiny_repository, "--log-verbose") as served:
        with InferenceServerClient(served.addresses["grpc"]) as client:
            answers = ask(client, image, SECRET_TOKENS, 3).as_numpy("answer")[0]
            assert any(SECRET_ANSWER.encode() in answer for answer in answers)
            with pytest.raises(InferenceServerException):
                ask(client, image, SECRET_TOKENS + len(TOKEN_VALUES))
        for text in (body, body[:-30]):
            post(served.addresses["http"], tensors.ENSEMBLE, text)
        written = traces(served, temporary)
        assert b"[request id: " in written, "the server logs nothing: the test proves nothing"
        assert [secret for secret in secrets if secret in written] == []
        assert not re.search(WRITTEN_TOKENS, written)
        regions = served.shared_memory()
        assert {path.stat().st_mode & 0o077 for path in regions} == {0}, "others on this machine can read it"
        assert any(secret in path.read_bytes() for path in regions for secret in secrets[:2]), "tensors are elsewhere"
        served.process.terminate()
        said = served.end()
        assert served.leaves_no_trace()
    assert [secret for secret in secrets if secret.decode(errors="replace") in said] == []


def test_errors_and_the_log_name_the_request_and_not_its_contents(server: EmbeddedTriton) -> None:
    unknown = InferInput("tokens", [1, 8], "INT32").set_data_from_numpy(SECRET_TOKENS + len(TOKEN_VALUES))
    image = InferInput("image", [1, SIDE, SIDE, 3], "UINT8").set_data_from_numpy(np.zeros((1, SIDE, SIDE, 3), np.uint8))
    with InferenceServerClient(server.grpc_url) as client:
        with pytest.raises(InferenceServerException, match=r"\[request id: ask-4711\]"):  # Triton refuses it
            client.infer(tensors.ENSEMBLE, [image], request_id="ask-4711", client_timeout=20)
        with pytest.raises(InferenceServerException, match=r"\[request id: ask-4712\]"):  # the backend refuses it
            client.infer(tensors.ENSEMBLE, [image, unknown], request_id="ask-4712", client_timeout=20)
    lines = [line for line in server.log.read_text(errors="replace").splitlines() if "ask-4712" in line]
    assert any("of a request" in line for line in lines)
    assert not any(str(number) in line for line in lines for number in SECRET_TOKENS[0] + len(TOKEN_VALUES))
