"""HEIC photos, as iPhones take them: decoded where pillow-heif is installed, else named."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from vizwiz_client.contract.errors import ImageError
from vizwiz_client.contract.image import check_header, load_photo

WIDTH, HEIGHT = 80, 60  # encoded as 80 x 64, of which 60 rows are shown


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def heic(image: Image.Image, orientation: int = 1) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, exif=exif.tobytes(), quality=90)
    return buffer.getvalue()


def with_size(data: bytes, width: int, height: int) -> bytes:
    """``data`` whose header states another size, of what is decoded and of what is shown of it."""
    at = data.index(b"clap") + 4
    data = data[:at] + struct.pack(">8i", width, 1, height, 1, 0, 1, 0, 1) + data[at + 32 :]
    return re.sub(rb"ispe\0{4}.{8}", b"ispe" + struct.pack(">3I", 0, width, height), data, flags=re.DOTALL)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright(orientation: int, tmp_path: Path) -> None:
    """pillow-heif turns the pixels: turning them by their tag would do it twice."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    jpeg = io.BytesIO()
    picture().save(jpeg, "JPEG", exif=exif, quality=95)
    expected = load_photo(jpeg)
    (path := tmp_path / "photo.jpg").write_bytes(heic(picture(), orientation))
    check_header(path)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        photo = load_photo(source)
        assert (photo.mode, photo.size) == ("RGB", expected.size)
        difference = np.abs(np.asarray(photo).astype(int) - np.asarray(expected))
        assert difference.mean() < 8
        np.testing.assert_array_equal(load_photo(photo), photo)


def test_transparent_parts_become_white() -> None:
    image = picture().convert("RGBA")
    image.putalpha(0)
    assert min(load_photo(heic(image)).getpixel((5, 5))) > 250


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ((20_000, 20_000), "20000 x 20000 pixels, expected at most 110,000,000 in all"),
        ((16, 200), "16 x 200 pixels, expected one side at most 10 times the other"),
        ((8, 8), "8 x 8 pixels, expected at least 16"),
    ],
)
def test_its_size_is_checked_before_it_is_decoded(size: tuple[int, int], text: str, tmp_path: Path) -> None:
    (path := tmp_path / "photo.heic").write_bytes(with_size(heic(picture()), *size))
    for check in (check_header, load_photo):
        with pytest.raises(ImageError, match=text):
            check(path)


def test_what_is_decoded_counts_and_not_the_part_that_is_shown() -> None:
    data = heic(picture())
    shown = data.index(b"clap") + 4
    large = with_size(data, 20_000, 20_000)
    with pytest.raises(ImageError, match="20000 x 20000 pixels, expected at most 110,000,000 in all"):
        load_photo(large[:shown] + data[shown : shown + 32] + large[shown + 32 :])


def test_a_size_that_is_not_the_pixels() -> None:
    with pytest.raises(ImageError, match="damaged or incomplete"):
        load_photo(with_size(heic(picture()), 2 * WIDTH, 2 * HEIGHT))


def test_damaged_bytes_are_an_image_error_or_a_picture() -> None:
    good, random = heic(picture(40, 30)), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(good)
        for position in random.integers(0, len(data), random.integers(1, 6)):
            data[position] = random.integers(256)
        try:
            assert load_photo(bytes(data)).mode == "RGB"
        except ImageError:
            continue


def test_it_is_named_where_it_cannot_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it raises ImportError
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic", b"heix\0\0\0\0mif1heix"):
        with pytest.raises(ImageError) as caught:
            load_photo(b"\0\0\0\x18ftyp" + brands + bytes(100))
        assert str(caught.value) == (
            "the photo: the file is HEIC, expected JPEG, PNG, WEBP, GIF or BMP; export it as JPEG, or install "
            "pillow-heif, which decodes it"
        )


def test_other_photos_do_not_import_it() -> None:
    code = (
        "import io, sys; from PIL import Image; from vizwiz_client.contract.image import load_photo; "
        "file = io.BytesIO(); Image.new('RGB', (20, 20)).save(file, 'PNG'); load_photo(file); "
        "sys.exit('pillow_heif' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
