"""A photo becomes the pixels that CLIP's own preprocess makes, and what cannot be used is refused."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from tests.contract.bad_photos import PNG_WITHOUT_PALETTE, encoded, png
from vizwiz_client.contract import image as image_module
from vizwiz_client.contract.errors import ImageError
from vizwiz_client.contract.image import check_header, load_photo, materialize, to_pixels


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(width * 10_007 + height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def clip_pixels(photo: Image.Image, side: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clip imports pkg_resources
        from clip.clip import _transform
    resize, crop, to_rgb, *_ = _transform(side).transforms
    return np.asarray(to_rgb(crop(resize(photo))))


def small_sizes() -> list[tuple[int, int]]:
    """Both orientations and square, every pair of remainders mod 4, above and below the sides they become."""
    remainders = list(itertools.product(range(4), repeat=2))
    bases = [(40, 64), (64, 40), (48, 48), (120, 360), (360, 120)]
    return [(width + i, height + j) for width, height in bases for i, j in remainders]


class TestPixelsEqualClips:
    @pytest.mark.parametrize("side", [30, 32, 33, 56])
    def test_on_generated_sizes(self, side: int) -> None:
        for width, height in small_sizes():
            photo = noise(width, height)
            ours = to_pixels(load_photo(photo), side)
            assert ours.shape == (side, side, 3)
            assert ours.dtype == np.uint8
            np.testing.assert_array_equal(ours, clip_pixels(photo, side), err_msg=f"{width} x {height} -> {side}")

    @settings(max_examples=60, deadline=None)
    @given(st.integers(16, 200), st.integers(16, 200), st.integers(1, 96))
    def test_on_any_size(self, width: int, height: int, side: int) -> None:
        if max(width, height) <= image_module.MAX_ASPECT_RATIO * min(width, height):
            photo = noise(width, height)
            np.testing.assert_array_equal(to_pixels(load_photo(photo), side), clip_pixels(photo, side))

    def test_on_real_photos(self, vizwiz: Path) -> None:
        compared = 0
        for path in sorted((vizwiz / "val").glob("*.jpg"))[:12]:
            with Image.open(path) as image:
                if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                    np.testing.assert_array_equal(to_pixels(load_photo(path), 336), clip_pixels(image, 336))
                    compared += 1
        assert compared >= 8


class TestSources:
    def test_path_string_bytes_and_image_are_equal(self, tmp_path: Path) -> None:
        photo = noise(40, 30)
        path = tmp_path / "photo.png"
        path.write_bytes(encoded(photo))
        for source in (path, str(path), path.read_bytes(), photo):
            np.testing.assert_array_equal(load_photo(source), photo)

    @pytest.mark.parametrize("format", image_module.FORMATS)
    def test_formats(self, format: str) -> None:
        photo = load_photo(encoded(Image.new("RGB", (40, 30), (255, 0, 0)), format))
        assert (photo.mode, photo.size) == ("RGB", (40, 30))
        red, green, blue = photo.getpixel((20, 15))
        assert red > 250
        assert max(green, blue) < 5

    def test_a_phones_picture_with_a_second_one_inside(self) -> None:
        photo = noise(40, 30)
        data = encoded(photo, "MPO", save_all=True, append_images=[noise(20, 20)])
        assert load_photo(data).size == photo.size
        table = data.index(b"MPF\0") + 8  # of the pictures: some releases of Pillow refuse the photo for it
        np.testing.assert_array_equal(load_photo(data[:table] + b"\xff" * 8 + data[table + 8 :]), load_photo(data))

    def test_the_first_frame_of_an_animation(self) -> None:
        red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
        data = encoded(red, "GIF", save_all=True, append_images=[blue])
        assert load_photo(data).getpixel((5, 5)) == (255, 0, 0)


class TestModes:
    def test_16_bit_grey_is_scaled(self) -> None:
        ramp = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
        photo = np.asarray(load_photo(encoded(Image.fromarray(ramp))))
        np.testing.assert_array_equal(photo, np.repeat(np.round(ramp / 257)[..., None], 3, axis=2))
        assert len(np.unique(photo)) == 256

    def test_a_transparent_16_bit_grey_becomes_white(self) -> None:
        """That one of 65,536 alone, not those of the same 8 bits."""
        grey = Image.fromarray(np.array([[0, 1000], [1001, 65535]], np.uint16).repeat(8, 0).repeat(8, 1))
        file = io.BytesIO()
        grey.save(file, "PNG", transparency=1000)
        assert np.asarray(load_photo(file.getvalue()))[::8, ::8, 0].tolist() == [[0, 255], [4, 255]]

    def test_32_bit_grey_is_read_as_16_bit(self) -> None:  # Pillow before 11.3 opens a 16-bit PNG so
        ramp = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
        np.testing.assert_array_equal(
            load_photo(Image.fromarray(ramp.astype(np.int32))), load_photo(Image.fromarray(ramp))
        )

    def test_palette_is_resolved_before_the_resize(self) -> None:
        palette = noise(60, 80).quantize(16)
        expected = clip_pixels(palette.convert("RGB"), 32)
        np.testing.assert_array_equal(to_pixels(load_photo(encoded(palette)), 32), expected)

    @pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "P"])
    def test_opaque_modes_become_rgb(self, mode: str) -> None:
        image = noise(40, 30).convert(mode)
        np.testing.assert_array_equal(load_photo(image), image.convert("RGB"))

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparent_parts_are_white(self, mode: str) -> None:
        image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))  # black under full transparency
        image.paste((0, 0, 0, 255), (0, 0, 20, 30))
        photo = load_photo(image.convert(mode))
        assert (photo.getpixel((5, 5)), photo.getpixel((30, 5))) == ((0, 0, 0), (255, 255, 255))

    def test_a_transparent_palette_entry_is_white(self) -> None:
        image = Image.new("P", (40, 30), 0)
        image.putpalette([0, 0, 0, 200, 10, 10])
        image.paste(1, (0, 0, 20, 30))
        photo = load_photo(encoded(image, transparency=b"\x00\xff"))
        assert (photo.getpixel((5, 5)), photo.getpixel((30, 5))) == ((200, 10, 10), (255, 255, 255))

    def test_half_transparent_is_blended(self) -> None:
        assert load_photo(Image.new("RGBA", (20, 20), (0, 0, 0, 51))).getpixel((3, 3)) == (204, 204, 204)

    def test_float_is_refused(self) -> None:
        with pytest.raises(ImageError, match="mode 'F', whose range is unknown; convert it to 'RGB' or 'L'"):
            load_photo(Image.new("F", (20, 20)))


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header states a size and whose pixels are missing: reading them would fail."""
    return png(width, height, 2, b"\x00")


class TestRefused:
    @pytest.mark.parametrize(
        ("size", "text"),
        [
            ((1, 1), "1 x 1 pixels, expected at least 16 on each side; send a larger picture"),
            ((1, 20_000), "1 x 20000 pixels, expected at least 16 on each side"),
            ((15, 100), "15 x 100 pixels, expected at least 16"),
            ((16, 161), "16 x 161 pixels, expected one side at most 10 times the other; cut out the part that matters"),
            ((20_000, 1_900), "20000 x 1900 pixels, expected one side at most 10 times the other"),
            ((9_500, 9_500), "damaged or incomplete"),  # over Pillow's warning, under ours: decoded
            ((12_001, 12_001), "12001 x 12001 pixels, expected at most 110,000,000 in all; make it smaller"),
            (
                (60_000, 60_000),
                "has 3,600,000,000 pixels, expected at most 110,000,000 in all; make it smaller before sending it",
            ),  # over Pillow's own limit
        ],
    )
    def test_sizes_before_the_pixels_are_decoded(self, size: tuple[int, int], text: str) -> None:
        with pytest.raises(ImageError, match=text):
            load_photo(png_header(*size))

    def test_sizes_of_an_image_in_memory(self) -> None:
        with pytest.raises(ImageError, match="1 x 20000 pixels"):
            load_photo(Image.new("RGB", (1, 20_000)))

    @pytest.mark.parametrize("size", [(16, 16), (16, 160), (160, 16)])
    def test_the_limits_themselves_are_accepted(self, size: tuple[int, int]) -> None:
        assert load_photo(encoded(noise(*size))).size == size

    @pytest.mark.parametrize(
        ("data", "got"),
        [
            (b"", "got no data"),
            (b"hello there, I am text", "got data that starts with b'hello there, I a'"),
            (b"\x00\x00\x00\x1cftypisom\x00\x00\x00\x00", "ftypisom"),
            (b"<!DOCTYPE html><html><svg ></svg></html>", "<!DOCTYPE html"),
        ],
    )
    def test_not_a_picture(self, data: bytes, got: str) -> None:
        with pytest.raises(ImageError, match="the photo: not a picture") as caught:
            load_photo(data)
        assert got in str(caught.value)
        assert "expected a JPEG, PNG, WEBP, GIF or BMP file" in str(caught.value)

    @pytest.mark.parametrize(
        ("start", "format"),
        [
            (b"\0\0\0\x20ftypavif\0\0\0\0mif1avif", "AVIF"),
            (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif", "AVIF"),
            (b"II*\0\x08\0\0\0", "TIFF"),
            (b"MM\0+\0\x08\0\0", "TIFF"),
            (b"%PDF-1.7\n", "PDF"),
            (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
            (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn -->\n<svg/>\n<svg width="9">', "SVG"),
            (b'<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" [\n<!ENTITY a "b">\n]>', "SVG"),
        ],
    )
    def test_formats_that_are_not_accepted_are_named(self, start: bytes, format: str, tmp_path: Path) -> None:
        (path := tmp_path / "photo.jpg").write_bytes(start + bytes(2000))
        for photo, name in ((path, str(path)), (path.read_bytes(), "the photo")):
            with pytest.raises(ImageError) as caught:
                load_photo(photo)
            assert (
                str(caught.value)
                == f"{name}: the file is {format}, expected JPEG, PNG, WEBP, GIF or BMP; export it as JPEG"
            )

    @pytest.mark.parametrize("start", [b"<!----><!---->" * 70, b"<?xml" * 200, b" " * 1024, b"<" * 1024])
    def test_text_that_is_nearly_a_drawing(self, start: bytes) -> None:
        with pytest.raises(ImageError, match="not a picture"):  # at once: the pattern does not try every combination
            load_photo(start)

    def test_what_a_decoder_asserts(self) -> None:
        with pytest.raises(ImageError, match=r"damaged or incomplete \((AssertionError|.*no attribute.*)\)"):
            load_photo(PNG_WITHOUT_PALETTE)
        with pytest.raises(ImageError, match="damaged or incomplete"):
            load_photo(materialize(Image.open(io.BytesIO(PNG_WITHOUT_PALETTE))))

    @pytest.mark.parametrize("where", ["open", "load", "convert"])
    @pytest.mark.parametrize("error", [RecursionError, AssertionError, RuntimeError("odd\n"), ZeroDivisionError])
    def test_whatever_a_decoder_raises(
        self, where: str, error: type[Exception] | Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fail(monkeypatch, where, error)
        with pytest.raises(ImageError, match=r"damaged or incomplete \((\w+Error|odd)\); send"):
            load_photo(encoded(noise(40, 30)))

    @pytest.mark.parametrize("where", ["open", "load", "convert", "getexif"])
    @pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
    def test_what_is_not_the_photos_fault_passes(
        self, where: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fail(monkeypatch, where, error)
        with pytest.raises(error):
            load_photo(encoded(noise(40, 30)))

    def fail(self, monkeypatch: pytest.MonkeyPatch, where: str, error: type[BaseException] | BaseException) -> None:
        def fails(*_: object, **__: object) -> None:
            raise error

        if where == "open":
            monkeypatch.setattr(Image, "open", fails)
        elif where == "load":
            monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fails)
        else:
            monkeypatch.setattr(Image.Image, where, fails)

    @pytest.mark.parametrize("format", image_module.FORMATS)
    def test_truncated(self, format: str) -> None:
        data = encoded(noise(64, 64), format)
        with pytest.raises(ImageError, match=r"damaged or incomplete \(.*\); send the file again, or another one"):
            load_photo(data[: len(data) // 2])

    def test_a_jpeg_of_many_scans(self, tmp_path: Path) -> None:
        """The decoder goes over the whole picture for each: half a megabyte could take minutes."""
        data = encoded(noise(64, 48), "JPEG", progressive=True)
        start = data.rindex(b"\xff\xda")  # its last scan, which may come again
        assert load_photo(data).size == (64, 48)
        (path := tmp_path / "scans.jpg").write_bytes(data[:start] + data[start:-2] * 100 + data[-2:])
        for photo, name in ((path, r"scans\.jpg"), (path.read_bytes(), "the photo")):
            with pytest.raises(ImageError, match=rf"{name}: the JPEG has 1\d\d scans, expected at most 100, because"):
                load_photo(photo)

    def test_scans_are_counted_across_the_pieces_that_are_read(self, tmp_path: Path) -> None:
        data = encoded(noise(64, 48), "JPEG")
        scan = data[data.index(b"\xff\xda") :][:10]
        for split in range(10):
            padding = b"\xff\xfe" + b"\x00" * ((1 << 20) - len(data) - 2 - split)
            whole = data + padding + scan * 1000
            with pytest.raises(ImageError, match="has 1,001 scans"):
                load_photo(whole)

    def test_a_film_behind_the_picture_has_no_scans(self) -> None:
        film = np.random.default_rng(0).integers(0, 256, 20_000_000, np.uint8).tobytes()
        assert film.count(b"\xff\xda") > image_module.MAX_SCANS
        assert load_photo(encoded(noise(64, 48), "JPEG") + film).size == (64, 48)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "no.jpg"
        with pytest.raises(
            ImageError, match=r"no\.jpg: cannot be read \(No such file or directory\); expected the path"
        ):
            load_photo(path)
        with pytest.raises(ImageError, match="Is a directory"):
            load_photo(tmp_path)

    @pytest.mark.parametrize("format", image_module.FORMATS)
    def test_damaged_bytes_are_an_image_error_or_a_picture(self, format: str) -> None:
        good = bytearray(encoded(noise(24, 20), format))
        random = np.random.default_rng(0)
        for _ in range(150):
            data = good.copy()
            for position in random.integers(0, len(data), random.integers(1, 6)):
                data[position] = random.integers(256)
            try:
                photo = load_photo(bytes(data))
            except ImageError:
                continue
            assert photo.mode == "RGB"


class TestHeaders:
    """What can be said of a photo without decoding it."""

    def test_good_ones(self, tmp_path: Path) -> None:
        (path := tmp_path / "photo.png").write_bytes(encoded(noise(40, 30)))
        check_header(path)
        path.write_bytes(png_header(40, 30))  # its pixels are missing
        check_header(path)

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b"", "not a picture: got no data"),
            (png_header(12, 30), "12 x 30 pixels, expected at least 16"),
            (png_header(60_000, 60_000), "expected at most|Expected at most"),
            (b"%PDF-", "PDF, expected JPEG"),
        ],
    )
    def test_others_are_refused(self, tmp_path: Path, data: bytes, text: str) -> None:
        (path := tmp_path / "photo.png").write_bytes(data)
        with pytest.raises(ImageError, match=rf"photo\.png: .*({text})"):
            check_header(path)


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    data = encoded(noise(20, 20))
    before, interval = list(warnings.filters), sys.getswitchinterval()
    threads = [threading.Thread(target=lambda: [load_photo(data) for _ in range(200)]) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert warnings.filters == before


LARGE = """
import io, re
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from vizwiz_client.contract.image import LARGE_PIXELS, load_photo

file = io.BytesIO()
side = int(LARGE_PIXELS ** 0.5) + 1
Image.new("RGBA", (side, side), (1, 2, 3, 4)).save(file, "PNG", compress_level=1)
peak_kib = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak_kib()
with ThreadPoolExecutor(4) as pool:
    photos = list(pool.map(load_photo, [file.getvalue()] * 4))
print((peak_kib() - before) / (4 * side * side / 1024))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own account of memory")
def test_large_photos_are_decoded_one_at_a_time() -> None:
    """In pictures of 4 bytes a pixel: four that stay, and one more of each that is being decoded."""
    environment = os.environ | {"PILLOW_BLOCK_SIZE": "128m"}  # a photo in one block
    run = subprocess.run([sys.executable, "-c", LARGE], env=environment, check=True, capture_output=True, text=True)
    assert 3 < float(run.stdout) < 5.5  # 7 without the lock


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_decodes_while_its_parent_did() -> None:
    """The parent held the locks at the moment of the fork; nobody gives them back in the child."""
    program = """
import io, os, signal
from PIL import Image
from vizwiz_client.contract import image
file = io.BytesIO()
Image.new("RGB", (6000, 5000)).save(file, "JPEG")
with image._warnings_lock, image._large_lock:
    if (child := os.fork()) == 0:
        signal.alarm(30)
        image.load_photo(file.getvalue())
        os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
