"""Sources of photos other than files, files that are no photo, JPEGs decoded at a fraction of their size, and EXIF."""

from __future__ import annotations

import io
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from tests.contract.bad_photos import encoded
from vizwiz_client.contract import image as image_module
from vizwiz_client.contract.errors import ImageError
from vizwiz_client.contract.image import load_photo, materialize, to_pixels


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)


class TestArrays:
    def test_grey(self) -> None:
        array = noise(30, 40)
        np.testing.assert_array_equal(load_photo(array), np.repeat(array[..., None], 3, axis=2))

    @pytest.mark.parametrize(
        ("array", "got"),
        [
            (np.zeros((30, 40, 3), np.float32), r"float32 \[30, 40, 3\]"),
            (np.zeros((30, 40, 3), np.uint16), r"uint16 \[30, 40, 3\]"),
            (np.zeros((30, 40), bool), r"bool \[30, 40\]"),
            (np.zeros((3, 30, 40), np.uint8), r"uint8 \[3, 30, 40\]"),
            (np.zeros((30, 40, 4), np.uint8), r"uint8 \[30, 40, 4\]"),
            (np.zeros((30, 40, 1), np.uint8), r"uint8 \[30, 40, 1\]"),
            (np.zeros((1, 30, 40, 3), np.uint8), r"uint8 \[1, 30, 40, 3\]"),
            (np.zeros(40, np.uint8), r"uint8 \[40\]"),
            (np.zeros((0, 0, 3), np.uint8), "0 x 0 pixels, expected at least 16"),
            (np.zeros((20, 201, 3), np.uint8), "201 x 20 pixels, expected one side at most 10 times the other"),
        ],
    )
    def test_others_are_refused(self, array: np.ndarray, got: str) -> None:
        with pytest.raises(ImageError, match=got) as caught:
            load_photo(array)
        assert "expected" in str(caught.value)

    def test_materialize_copies(self) -> None:
        for array in (noise(30, 40), noise(30, 40, 3)):
            kept, before = materialize(array), array.copy()
            array[:] = 0
            np.testing.assert_array_equal(kept, before)


class TestFileObjects:
    def test_from_its_start_if_it_can_be_rewound(self, tmp_path: Path) -> None:
        array = noise(30, 40, 3)
        (tmp_path / "photo.png").write_bytes(encoded(Image.fromarray(array)))
        with (tmp_path / "photo.png").open("rb") as file:
            for _ in range(2):  # the second finds it at its end
                np.testing.assert_array_equal(load_photo(file), array)

    def test_from_where_it_is_if_it_cannot(self) -> None:
        array = noise(30, 40, 3)
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as file:
            with os.fdopen(writing, "wb") as other:
                other.write(encoded(Image.fromarray(array)))
            np.testing.assert_array_equal(load_photo(file), array)

    def test_text_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "photo.txt").write_text("words")
        with (
            (tmp_path / "photo.txt").open() as file,
            pytest.raises(ImageError, match="gives str, expected bytes: open it with mode 'rb'"),
        ):
            load_photo(file)  # type: ignore[arg-type]

    def test_errors_of_its_own(self) -> None:
        class Download(io.RawIOBase):
            def read(self, size: int = -1) -> bytes:
                raise RuntimeError("connection broken")

        with pytest.raises(ImageError, match=r"the file object cannot be read \(connection broken\)"):
            load_photo(Download())

    def test_without_end_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(image_module, "MAX_FILE_BYTES", 1_000)
        with Path("/dev/zero").open("rb") as file, pytest.raises(ImageError, match="over 1,000 bytes, expected fewer"):
            load_photo(file)


class TestNoFiles:
    @pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
    @pytest.mark.skipif(sys.platform == "win32", reason="there are none")
    def test_what_might_never_end_is_not_opened(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "photo.jpg"
        with socket.socket(socket.AF_UNIX) as listener:
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "socket":
                listener.bind(str(path))
            else:
                path = Path("/dev/zero")
            with pytest.raises(ImageError, match="a pipe, socket or device, expected a regular file; read it"):
                load_photo(path)

    def test_a_path_that_cannot_be_one(self) -> None:
        with pytest.raises(ImageError, match=r"a\\x00b\.jpg: cannot be read .*embedded null"):
            load_photo("a\0b.jpg")
        with pytest.raises(ImageError, match=r"cannot be read .*surrogates not allowed"):
            load_photo("\ud800.jpg")

    def test_more_bytes_than_any_photo_has(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(Image.fromarray(noise(30, 40, 3)))
        (path := tmp_path / "photo.png").write_bytes(data)
        monkeypatch.setattr(image_module, "MAX_FILE_BYTES", len(data))
        for source in (path, data, bytearray(data), memoryview(data), io.BytesIO(data)):
            assert load_photo(source).size == (40, 30)
        monkeypatch.setattr(image_module, "MAX_FILE_BYTES", len(data) - 1)
        for source in (path, data, bytearray(data), memoryview(data), io.BytesIO(data)):
            with pytest.raises(ImageError, match=rf"over {len(data) - 1:,} bytes, expected fewer; make it smaller"):
                load_photo(source)

    @pytest.mark.parametrize("source", [None, 7, ["a.jpg"], ("a.jpg",)])
    def test_other_kinds(self, source: object) -> None:
        name = type(source).__name__
        with pytest.raises(ImageError, match=f"got a photo of type {name}, expected a path, the bytes of a file"):
            load_photo(source)  # type: ignore[arg-type]


class TestShrinking:
    def jpeg(self, width: int, height: int, **options: object) -> bytes:
        buffer = io.BytesIO()
        small = Image.fromarray(noise(9, 12, 3)).resize((width, height), Image.Resampling.BICUBIC)
        small.save(buffer, "JPEG", quality=90, **options)
        return buffer.getvalue()

    @pytest.mark.parametrize(
        ("size", "side", "shrunk"),
        [
            ((640, 480), 60, (80, 60)),  # to an eighth
            ((640, 480), 61, (160, 120)),
            ((480, 640), 120, (120, 160)),
            ((640, 480), 240, (320, 240)),
            ((640, 480), 241, (640, 480)),
            ((644, 484), 60, (161, 121)),  # an eighth would be rounded
            ((641, 480), 60, (641, 480)),
        ],
    )
    def test_it_keeps_the_side_and_the_shape(self, size: tuple[int, int], side: int, shrunk: tuple[int, int]) -> None:
        data = self.jpeg(*size)
        assert load_photo(data).size == size
        photo = load_photo(data, side)
        assert photo.size == shrunk
        difference = np.abs(to_pixels(photo, side).astype(int) - to_pixels(load_photo(data), side))
        assert difference.mean() < 2  # the same picture, nowhere shifted
        assert not difference.any() or photo.size != size

    def test_upright_as_ever(self) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        assert load_photo(self.jpeg(640, 480, exif=exif), 60).size == (60, 80)

    @pytest.mark.parametrize("mode", ["L", "CMYK"])
    def test_other_modes(self, mode: str) -> None:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(self.jpeg(640, 480))).convert(mode).save(buffer, "JPEG")
        photo = load_photo(buffer.getvalue(), 60)
        assert (photo.mode, photo.size) == ("RGB", (80, 60))


class TestUpright:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_orientation(self, orientation: int) -> None:
        upright = Image.fromarray(noise(24, 40, 3))
        # what a camera that was held so stores: undoing it is a rotation by the opposite angle, or the same flip
        stored = {
            1: lambda image: image,
            2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
            4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
            5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
            6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
            7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
            8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
        }[orientation](upright)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        np.testing.assert_array_equal(load_photo(encoded(stored, exif=exif)), upright)

    @pytest.mark.parametrize(
        "exif",
        [
            b"Exif\x00\x00nonsense",
            b"Exif\x00\x00MM\xff*\x00\x00\x00\x08",
            b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x02\x01",
            b"Exif\x00\x00",
        ],
    )
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    def test_damaged_metadata_does_not_lose_the_photo(self, format: str, exif: bytes) -> None:
        assert load_photo(encoded(Image.fromarray(noise(24, 40, 3)), format, exif=exif)).size == (40, 24)

    def test_places_and_resolutions_of_nought_by_nought(self) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        exif[ExifTags.Base.XResolution] = IFDRational(0, 0)
        exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitude: (IFDRational(0, 0),) * 3}
        for format in ("JPEG", "PNG", "WEBP"):
            assert load_photo(encoded(Image.fromarray(noise(24, 40, 3)), format, exif=exif)).size == (24, 40)

    def test_an_orientation_in_xmp(self) -> None:
        xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
        for format in ("JPEG", "WEBP"):
            assert load_photo(encoded(Image.fromarray(noise(24, 40, 3)), format, xmp=xmp)).size == (24, 40)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_loaded_twice(self, orientation: int) -> None:
        """A photo is rotated when it is loaded, and not again when the result is loaded."""
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        buffer = io.BytesIO()
        Image.fromarray(noise(30, 40, 3)).save(buffer, "PNG", exif=exif)
        upright = load_photo(buffer.getvalue())
        assert upright.size == ((40, 30) if orientation < 5 else (30, 40))
        for again in (load_photo(upright), load_photo(materialize(Image.open(buffer))), load_photo(Image.open(buffer))):
            np.testing.assert_array_equal(again, upright)

    def test_materialize_copies_an_image(self) -> None:
        """As of a GIF that is stepped through, which is one object at every frame."""
        image = Image.fromarray(noise(30, 40, 3))
        kept = materialize(image)
        image.paste("black", (0, 0, *image.size))
        np.testing.assert_array_equal(load_photo(kept), noise(30, 40, 3))

    def test_transparency_is_kept(self) -> None:
        """It lies beside the orientation in Pillow's ``info``."""
        image = Image.new("P", (40, 30), 3)
        image.info["transparency"] = 3
        assert load_photo(materialize(image)).getpixel((5, 5)) == (255, 255, 255)
