"""The raw ensemble on a live server: files and questions as they come, and whatever else people send."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from serving.repository import read_config
from serving.server import EmbeddedTriton
from tests.conftest import ROOT, LiveServer
from tests.serving import malformed
from tests.serving.processes import RECOVERY_TIMEOUT_S, Command, eventually
from tests.serving.tiny_repository import change_config
from training.dataset import read_split
from vizwiz_client.contract import tensors, tokenizer
from vizwiz_client.contract.image import load_photo, to_pixels

QUESTION = b"what is this?"
OUTPUTS = [spec.name for spec in tensors.HEAD_OUTPUTS]


@pytest.fixture
def client(live_server: LiveServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(live_server.grpc_url) as client:
        yield client


@pytest.fixture
def photo(live_server: LiveServer) -> bytes:
    return (live_server.repository / live_server.head / "golden.jpg").read_bytes()


def ask_raw(
    client: InferenceServerClient, photos: list[bytes], questions: list[bytes], timeout_s: float = 60
) -> dict[str, Any]:
    """Every output of the raw ensemble; ``error`` as a list of texts."""
    inputs = []
    for name, values in (("image_bytes", photos), ("question", questions)):
        inputs.append(InferInput(name, [len(values), 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array(values, dtype=np.object_)[:, None])
    result = client.infer(tensors.RAW_ENSEMBLE, inputs, client_timeout=timeout_s)
    errors = [error.decode() for error in result.as_numpy("error")[:, 0]]
    return {name: result.as_numpy(name) for name in OUTPUTS} | {"error": errors}


def ask_tensors(client: InferenceServerClient, photos: list[bytes], questions: list[str], side: int) -> dict[str, Any]:
    """Every output of the tensor ensemble, asked with what the contract's code makes."""
    image = np.stack([to_pixels(load_photo(photo), side) for photo in photos])
    ids = np.stack([tokenizer.pad(tokenizer.tokenize(text).ids, tensors.CONTEXT_LENGTH) for text in questions])
    inputs = []
    for name, array, datatype in (("image", image, "UINT8"), ("tokens", ids, "INT32")):
        inputs.append(InferInput(name, list(array.shape), datatype))
        inputs[-1].set_data_from_numpy(array)
    result = client.infer(tensors.ENSEMBLE, inputs, client_timeout=60)
    return {name: result.as_numpy(name) for name in OUTPUTS}


def test_both_ensembles_answer_the_real_photos_exactly_alike(
    live_server: LiveServer, client: InferenceServerClient, real_photos: Path
) -> None:
    split = read_split(real_photos, "val")
    photos = [path.read_bytes() for path in split.photo_paths()]
    questions = [record.question for record in split.records]
    assert len(photos) == 50
    for start in range(0, 50, 10):
        part = slice(start, start + 10)
        raw = ask_raw(client, photos[part], [question.encode() for question in questions[part]])
        expected = ask_tensors(client, photos[part], questions[part], live_server.image_size)
        assert raw["error"] == [""] * 10
        for name in OUTPUTS:
            np.testing.assert_array_equal(raw[name], expected[name])
    assert len({answer.tobytes() for answer in raw["answer"]}) > 5, "all photos are alike: the test proves nothing"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_formats_and_orientation(
    kind: str, live_server: LiveServer, client: InferenceServerClient, photo: bytes
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    with Image.open(io.BytesIO(photo)) as image:
        file = encode(image, kind, exif=exif, lossless=True)
        upright = encode(image.transpose(Image.Transpose.ROTATE_270), "PNG")
    raw = ask_raw(client, [file], [QUESTION])
    assert raw["error"] == [""]
    np.testing.assert_array_equal(
        raw["answer"], ask_tensors(client, [upright], [QUESTION.decode()], live_server.image_size)["answer"]
    )


def tall_png() -> bytes:
    """1 x 20,000 pixels in some 150 bytes; resized as CLIP does, 10 GB at 336 pixels."""
    return encode(Image.new("1", (1, 20_000)), "PNG", optimize=True)


def huge_png() -> bytes:
    """The head of a picture of 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_bad_item_has_its_error_and_the_others_their_answers(
    client: InferenceServerClient, photo: bytes, tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    path = bytes(tmp_path / "photo.jpg")
    bad = {
        "damaged or incomplete": (photo[: len(photo) // 2], QUESTION),
        "is 1 x 20000 pixels": (tall_png(), QUESTION),
        "Expected at most 110,000,000 pixels": (huge_png(), QUESTION),
        "got no data": (b"", QUESTION),
        "not a picture": (b"\x00\xff not a picture", QUESTION),
        f"starts with {path[:16]!r}": (path, QUESTION),
        "paths and addresses are not opened": (b"/photos/photo/a", QUESTION),
        f"starts with {b'file://' + path[:9]!r}": (b"file://" + path, QUESTION),
        "starts with b'http://127.0.0.1": (b"http://127.0.0.1:1/photo.jpg", QUESTION),
        "has 40,000,001 bytes, expected at most 40,000,000": (b"\xff" * 40_000_001, QUESTION),
        "expected words": (photo, b"  "),
        "the question is not UTF-8 (at byte 5)": (photo, b"what \xff"),
        "the question has 5,001 characters": (photo, b"a" * 5_001),
    }
    pairs = [(photo, QUESTION), *bad.values(), (photo, b"what color is it?")]
    raw = ask_raw(client, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    assert (raw["error"][0], raw["error"][-1]) == ("", "")
    for expected, error in zip(bad, raw["error"][1:-1], strict=True):
        assert expected in error
    for row in (0, -1):
        alone = ask_raw(client, [pairs[row][0]], [pairs[row][1]])
        for name in OUTPUTS:
            np.testing.assert_allclose(raw[name][row], alone[name][0], atol=1e-5)


def test_a_picture_that_would_be_enormous_costs_no_memory(
    live_server: LiveServer, client: InferenceServerClient, photo: bytes
) -> None:
    (preprocess,) = (entry.name for entry in live_server.repository.glob("preprocess_*"))
    ask_raw(client, [photo] * 8, [QUESTION] * 8)
    before = peak_memory(preprocess, live_server.grpc_url)
    ask_raw(client, [tall_png(), huge_png()] * 4, [QUESTION] * 8)
    assert peak_memory(preprocess, live_server.grpc_url) - before < 50 << 10


def peak_memory(model: str, grpc_url: str) -> int:
    """The most memory, in KiB, that the process of ``model`` has had resident: of this server, not of another one's."""
    listens = f"--grpc-port={grpc_url.rpartition(':')[2]}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"/{model}/1/model.py".encode() in (folder / "cmdline").read_bytes():
                values = dict(re.findall(r"(PPid|VmHWM):\s+(\d+)", (folder / "status").read_text()))
                if listens in (folder.parent / values["PPid"] / "cmdline").read_bytes().split(b"\0"):
                    return int(values["VmHWM"])
        except OSError:  # it ended meanwhile
            continue
    raise AssertionError(f"the server at {grpc_url} has no process that runs {model}")


@pytest.mark.slow
def test_deadlines_that_pass_cost_seconds_and_not_the_service(live_server: LiveServer, photo: bytes) -> None:
    """Triton 2.51 may end where clients give up while it has their photos, and more than once."""

    def answered() -> bool:
        with suppress(InferenceServerException), InferenceServerClient(url) as client:
            return ask_raw(client, [photo], [QUESTION])["error"] == [""]
        return False

    def give_up(number: int) -> int:
        late = 0
        with InferenceServerClient(url) as client:
            for _ in range(40):
                try:
                    ask_raw(client, [photo], [QUESTION], timeout_s=0.1)
                except InferenceServerException as error:
                    late += "DEADLINE_EXCEEDED" in str(error)
        return late

    with Command(live_server.repository) as served:
        url = served.addresses["grpc"]
        for _ in range(2):
            with ThreadPoolExecutor(64) as pool:
                assert sum(pool.map(give_up, range(64))) > 64, "nearly all were in time: the test proves nothing"
            assert eventually(answered, RECOVERY_TIMEOUT_S)
        served.process.send_signal(signal.SIGTERM)
        served.end()
        assert served.process.returncode == 0


def test_many_at_once_each_get_their_own_answer(
    live_server: LiveServer, client: InferenceServerClient, photo: bytes
) -> None:
    split = read_split(live_server.data, "val", limit=12)
    photos = [path.read_bytes() for path in split.photo_paths()]
    photos[5] = photo[:100]
    alone = [ask_raw(client, [each], [QUESTION]) for each in photos]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda each: ask_raw(client, [each], [QUESTION]), photos))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one["answer"], other["answer"], atol=1e-5)
        assert one["error"] == other["error"]
    assert [bool(one["error"][0]) for one in alone] == [number == 5 for number in range(12)]


def test_a_full_queue_of_photos_refuses_and_recovers(live_server: LiveServer, photo: bytes, tmp_path: Path) -> None:
    """The published bound, made short enough to be reached by a few clients."""
    repository = Path(shutil.copytree(live_server.repository, tmp_path / "models"))
    (preprocess,) = repository.glob("preprocess_*")
    assert read_config(preprocess).dynamic_batching.default_queue_policy.max_queue_size > 0

    def shorten(config: Any) -> None:
        config.dynamic_batching.default_queue_policy.max_queue_size = 2

    change_config(preprocess, shorten)
    with Image.open(io.BytesIO(photo)) as image:
        large = encode(image.resize((3000, 2000)), "JPEG")

    with EmbeddedTriton(repository) as server:

        def over_http(_: int) -> int | str:
            body = json.dumps({"inputs": malformed.good_raw_inputs(large)}).encode()
            return malformed.send_http(server.http_url, body, {}, tensors.RAW_ENSEMBLE)

        def over_grpc(_: int) -> str:
            with InferenceServerClient(server.grpc_url) as client:
                try:
                    ask_raw(client, [large], [QUESTION])
                except InferenceServerException as error:
                    return f"{error.status()} {error.message()}"
            return "answered"

        with ThreadPoolExecutor(32) as pool:
            http_statuses, grpc_statuses = (Counter(pool.map(ask, range(32))) for ask in (over_http, over_grpc))
        assert http_statuses.keys() == {200, 503}, http_statuses
        refusals = [text for text in grpc_statuses if text != "answered"]
        assert grpc_statuses["answered"]
        assert refusals
        assert all(text.startswith("StatusCode.UNAVAILABLE") for text in refusals), refusals
        assert all("Exceeds maximum queue size" in text for text in refusals), refusals
        with InferenceServerClient(server.grpc_url) as client:
            assert ask_raw(client, [photo], [QUESTION])["error"] == [""]


def test_base64_is_taken_for_what_it_holds(client: InferenceServerClient, photo: bytes) -> None:
    wrapped = base64.encodebytes(photo)  # in lines
    assert b"\n" in wrapped[:-1]
    raw = ask_raw(client, [photo, base64.b64encode(photo), wrapped, wrapped[:-7]], [QUESTION] * 4)
    assert raw["error"][:3] == [""] * 3
    assert "text that is not base64 (Incorrect padding)" in raw["error"][3]
    for row in (1, 2):
        np.testing.assert_allclose(raw["answer"][row], raw["answer"][0], atol=1e-6)


FILES = """
import io, sys, types
from PIL import Image
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace()  # only Triton has it; none of it is needed here
sys.path.insert(0, sys.argv[1])
from preprocess_model import read_file
count = 0
for width, height in ((16, 16), (11051, 20), (20, 11051), (300, 200), (0x2b2b, 0x61)):
    for mode in ("RGB", "L", "P"):
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
            for options in ({}, {"lossless": True}):
                file = io.BytesIO()
                try:
                    Image.new(mode, (width, height)).save(file, kind, **options)
                except OSError:  # that format has no such mode
                    continue
                assert read_file(file.getvalue()) == file.getvalue()
                count += 1
print(count)
"""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_malformed_requests_harm_nobody(live_server: LiveServer, photo: bytes, seed: int) -> None:
    """500 of them; what is merely no photo, or no question, is answered with an ``error``."""
    inputs, message = malformed.good_raw_inputs(photo), malformed.good_raw_message(photo)
    dice = random.Random(seed)
    statuses: Counter[Any] = Counter()
    with EmbeddedTriton(live_server.repository) as server, InferenceServerClient(server.grpc_url) as client:
        expected = ask_raw(client, [photo], [QUESTION])
        body = json.dumps({"inputs": inputs}).encode()
        assert malformed.send_http(server.http_url, body, {}, tensors.RAW_ENSEMBLE) == 200
        for part in range(5):
            statuses += malformed.send_all(100, server.http_url, server.grpc_url, inputs, message, dice)
            again = ask_raw(client, [photo], [QUESTION])
            assert again["error"] == [""], f"after part {part}"
            np.testing.assert_array_equal(again["answer"], expected["answer"])
    for fine in (200, grpc.StatusCode.OK):  # a word where a photo should be
        del statuses[fine]
    malformed.check_refusals(statuses)


def test_no_picture_is_taken_for_base64() -> None:
    run = subprocess.run([sys.executable, "-c", FILES, ROOT / "export"], check=True, capture_output=True, text=True)
    assert int(run.stdout) > 100


def http_commands() -> list[str]:
    """The commands of docs/http.md."""
    return re.findall(r"```sh\n(.+?)```", (ROOT / "docs" / "http.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", [0, 1])
def test_the_commands_of_the_docs(
    number: int, live_server: LiveServer, client: InferenceServerClient, photo: bytes, tmp_path: Path
) -> None:
    (tmp_path / "img.jpg").write_bytes(photo)
    assert len(http_commands()) == 2
    command = http_commands()[number].replace("localhost:8000", live_server.http_url)
    environment = os.environ | {"no_proxy": "*"}
    run = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    outputs = {output["name"]: output["data"] for output in json.loads(run.stdout)["outputs"]}
    expected = ask_raw(client, [photo], [QUESTION])
    assert len(outputs["answer"]) == 3
    assert float(outputs["answer"][0].split(":")[0]) == pytest.approx(expected["answer"].max(), abs=2e-6)
    assert outputs["answerable"] == pytest.approx(expected["answerable"][0].tolist())
    assert outputs["error"] == [""]
