from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.decoding import ROTATIONS, Decoder, rotated_pixels
from vizwiz_client.contract.image import load_photo, to_pixels


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo that its camera says is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png", exif=exif)
    return tmp_path / "photo.png"


def test_a_worker_gives_the_pixels_of_the_contract(photo: Path) -> None:
    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    with Decoder(1) as decoder:
        assert decoder.submit(photo, ROTATIONS, pixels).result() is None
    np.testing.assert_array_equal(pixels[0], to_pixels(load_photo(photo), 32))
    np.testing.assert_array_equal(pixels, rotated_pixels(photo, 32, ROTATIONS))


def test_a_worker_squashes_where_the_clip_does(photo: Path) -> None:
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    with Decoder(1, squash=True) as decoder:
        assert decoder.submit(photo, (0, 90), pixels).result() is None
    np.testing.assert_array_equal(pixels[0], to_pixels(load_photo(photo), 32, squash=True))
    np.testing.assert_array_equal(pixels[1], np.rot90(pixels[0]))


def test_an_unreadable_photo_is_an_error_and_the_worker_survives(photo: Path) -> None:
    damaged = photo.with_name("damaged.png")
    damaged.write_bytes(photo.read_bytes()[:300])
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    with Decoder(1) as decoder:
        problem = decoder.submit(damaged, (0,), pixels).result()
        assert problem is not None
        assert problem.startswith(f"{damaged}: the picture is damaged or incomplete")
        assert decoder.submit(photo, (0,), pixels).result() is None
    assert pixels.any()


def test_a_photo_that_kills_its_worker_is_named_and_another_worker_takes_over(photo: Path) -> None:
    trap = photo.with_name("trap.png")
    trap.write_bytes(photo.read_bytes())
    pixels = np.zeros((1, 32, 32, 3), np.uint8)

    with Decoder(1) as decoder:
        assert decoder.submit(photo, (0,), pixels).result() is None
        worker = _worker()
        os.kill(worker, signal.SIGSTOP)  # so that it is killed while it has the photo
        waiting = decoder.submit(trap, (0,), pixels)
        time.sleep(0.3)
        os.kill(worker, signal.SIGKILL)
        assert waiting.result(timeout=60) == f"{trap}: the worker process crashed while decoding it (exit status -9)"
        assert decoder.submit(photo, (0,), pixels).result() is None


def _worker() -> int:
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    (worker,) = [pid for pid in children if b"training.decoding" in Path("/proc", pid, "cmdline").read_bytes()]
    return int(worker)


def test_a_worker_needs_no_torch(photo: Path) -> None:
    code = "import sys; import training.decoding; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )
