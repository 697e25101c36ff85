"""How a photo becomes pixels: the one implementation, for training and for serving.

:func:`load_photo` refuses what cannot be used, decodes, turns upright and makes RGB; :func:`to_pixels` resizes and
crops exactly as CLIP's own preprocess does on an RGB picture (``clip._transform``: ``Resize`` bicubic, ``CenterCrop``).
Mean and standard deviation belong to the image graph.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

from vizwiz_client.contract.errors import ImageError

PREPROCESSING_VERSION = 1  # part of the cache key of features: raise it when a file gives other pixels than before

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # of an animation, the first frame
MIN_SIDE = 16  # pixels; the smallest photos of VizWiz are 48 x 64
MAX_PIXELS = 110_000_000  # a 108-megapixel phone's photo; 440 MB decoded (Pillow keeps 4 bytes a pixel)
LARGE_PIXELS = 25_000_000  # larger ones are decoded one at a time: becoming RGB, a photo is there up to three times
MAX_FILE_BYTES = 500_000_000  # a file object may have no end; MAX_PIXELS uncompressed are 330 MB
MAX_SCANS = 100  # of a JPEG, which a progressive one has about 10 of; a decoder goes over the whole picture for each
MAX_ASPECT_RATIO = 10  # bounds the resized picture too: without it, 1 x 20,000 pixels become S x 20,000 S

Photo = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[np.uint8]

# A JPEG's "start of scan" with 1 to 4 components; the length that follows tells it from other data's bytes.
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_SCAN_BYTES = 5
_JPEG = b"\xff\xd8\xff"  # how one starts
_START_BYTES = 1024  # of a file: enough to tell its format
_OTHER_FORMATS = {  # how files start that people take for photos; HEIC is decoded where pillow-heif is installed
    "AVIF": re.compile(rb"....ftyp(?:....){0,12}?avi[fs]", re.DOTALL),  # brands: https://mp4ra.org
    "HEIC": re.compile(rb"....ftyp(?:....){0,12}?(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "PDF": re.compile(rb"\s*%PDF-"),
    "SVG": re.compile(rb"(?:\xef\xbb\xbf)?\s*(?=<[?!s])(?!.*<html).*?<(?:!DOCTYPE\s+)?svg[\s>]", re.DOTALL),
}
# Each size that is decoded, in a HEIC: the picture may be a small part of it (clap), or be put together from many.
_HEIC_SIZE = re.compile(rb"ispe\0...(....)(....)", re.DOTALL)
_16_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # "I": how older Pillow opens a 16-bit PNG
_UPRIGHT = {  # EXIF orientation -> what undoes it; https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf, table 4.6.4
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Keys of a picture's ``info`` in which Pillow's getexif() looks for the orientation.
_ORIENTATION_IN = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
_EXIF_HEADER = b"Exif\0\0"
_NAME = "the photo"  # of what has no name
_warnings_lock = threading.Lock()
_large_lock = threading.Lock()


def load_photo(source: Photo, draft_size: int | None = None) -> Image.Image:
    """Decode a photo: upright, mode "RGB", in memory, at its own size.

    ``source`` is the path of a regular file, the bytes of one, a binary file object (read from its start, where it can
    be rewound), a PIL image (turned by its own EXIF tag, when it has one, as a file is), or a NumPy array uint8
    [H, W, 3] (RGB) or [H, W] (grey). The size is checked before the pixels are decoded. Transparent parts become white,
    the page that screenshots and logos with a transparent background are drawn for; dropping the alpha channel would
    show what lies hidden under it. 16-bit grey is scaled to 8 bits.

    With ``draft_size`` the JPEG decoder may shrink the photo, to a half, quarter or eighth that keeps the shorter side
    at least that long in pixels: several times faster, not the same pixels.

    Raises ImageError: not one of FORMATS (HEIC is accepted where pillow-heif is installed), damaged or truncated, a
    side under MIN_SIDE, over MAX_PIXELS pixels, one side over MAX_ASPECT_RATIO times the other, a JPEG of over
    MAX_SCANS scans, a file that cannot be read, is not a regular one or has over MAX_FILE_BYTES, or ``source`` is of
    another kind. Whatever a decoder raises becomes an ImageError, but for MemoryError.
    """
    kept = materialize(source)
    if isinstance(kept, Image.Image):
        return kept.convert("RGB") if kept.mode != "RGB" else kept
    if isinstance(kept, bytes):
        return _decode(io.BytesIO(kept), _NAME, draft_size)
    with open_file(kept) as file:
        return _decode(file, os.fsdecode(kept), draft_size)


def check_header(path: str | os.PathLike[str]) -> None:
    """Check what a photo's file says before its pixels: its format and size.

    Raises ImageError, as :func:`load_photo`.
    """
    name = os.fsdecode(path)
    with open_file(path) as file, _open(file, name) as image:
        _check_size(*image.size, name)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a photo's file, which must be a regular one: pipes and devices might never end. Never waits for a pipe.

    Raises ImageError.
    """
    name = os.fsdecode(path)
    try:
        _check_regular(os.stat(path), name)  # noqa: PTH116 - before it is opened, which changes some devices
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 - the caller closes it
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{name}: cannot be read ({reason}); expected the path of a {_formats()} file") from error
    try:
        _check_regular(os.fstat(file.fileno()), name)  # it may be another than a moment ago
    except ImageError:
        file.close()
        raise
    return file


def materialize(source: Photo) -> str | os.PathLike[str] | bytes | Image.Image:
    """Read file objects, images and arrays, so that whoever gave them may close or change them; paths stay paths.

    An image is returned as :func:`load_photo` returns it, an array as an RGB or a grey image.

    Raises ImageError, as :func:`load_photo`.
    """
    if isinstance(source, str | os.PathLike):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        with _refusing(_NAME):
            _check_bytes(len(source) if isinstance(source, bytes) else memoryview(source).nbytes, _NAME)
            return bytes(source)
    if isinstance(source, Image.Image):
        return _finish(source, _NAME)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if hasattr(source, "read"):
        return _read_all(source)
    raise ImageError(
        f"got a photo of type {type(source).__name__}, expected a path, the bytes of a file, a binary file object, a "
        "PIL image, or a NumPy array uint8 [H, W, 3] or [H, W]"
    )


def to_pixels(photo: Image.Image, image_size: int) -> npt.NDArray[np.uint8]:
    """Resize and crop ``photo``, as :func:`load_photo` returns it, to RGB pixels uint8 [image_size, image_size, 3].

    The shorter side becomes ``image_size`` (bicubic), the longer one is cropped around its centre.
    """
    width, height = photo.size
    longer = int(image_size * max(width, height) / min(width, height))
    new_width, new_height = (image_size, longer) if width <= height else (longer, image_size)
    resized = photo.resize((new_width, new_height), Image.Resampling.BICUBIC)
    # torchvision rounds half an odd margin to even, so the crop is not always at floor(margin / 2)
    left, top = round((new_width - image_size) / 2), round((new_height - image_size) / 2)
    return np.array(resized.crop((left, top, left + image_size, top + image_size)))


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # which Windows lacks, like named pipes in folders


def _check_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # opening a folder fails by itself
        raise ImageError(f"{name}: a pipe, socket or device, expected a regular file; read it, and pass the bytes")
    _check_bytes(status.st_size, name)


def _check_bytes(size: int, name: str) -> None:
    if size > MAX_FILE_BYTES:
        raise ImageError(f"{name}: the file has over {MAX_FILE_BYTES:,} bytes, expected fewer; make it smaller")


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    grey, rgb = array.ndim == 2, array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not (grey or rgb):
        raise ImageError(
            f"got a NumPy array {array.dtype} {list(array.shape)}, expected uint8 [H, W, 3] (RGB, values 0 to 255) or "
            "[H, W] (grey); convert it, or pass the file itself"
        )
    _check_size(array.shape[1], array.shape[0], _NAME)
    return Image.fromarray(array).copy()


def _read_all(file: Any) -> bytes:
    try:
        with suppress(OSError):  # what cannot be rewound is read from where it is
            file.seek(0)
        data = file.read(MAX_FILE_BYTES + 1)
    except MemoryError:
        raise
    except Exception as error:  # each kind of file object has errors of its own
        reason = str(error) or type(error).__name__
        raise ImageError(f"{_NAME}: the file object cannot be read ({reason}); expected one that is open") from error
    if not isinstance(data, bytes):
        raise ImageError(
            f"{_NAME}: the file object gives {type(data).__name__}, expected bytes: open it with mode 'rb'"
        )
    _check_bytes(len(data), _NAME)
    return data


def _decode(file: BinaryIO, name: str, draft_size: int | None) -> Image.Image:
    with _open(file, name) as image, _refusing(name):
        _check_size(*image.size, name)
        if image.format == "JPEG":
            _check_scans(file, name)
        if draft_size is not None:
            _shrink(image, draft_size)
        return _finish(image, name)


def _open(file: BinaryIO, name: str) -> Image.Image:
    """Read a picture's header; its pixels are not decoded yet."""
    with _refusing(name):
        start = file.read(_START_BYTES)
        file.seek(0)
        format = next((format for format, starts in _OTHER_FORMATS.items() if starts.match(start)), None)
        heif = _pillow_heif() if format == "HEIC" else None
        if format and not heif:
            heic = ", or install pillow-heif, which decodes it" if format == "HEIC" else ""
            raise ImageError(f"{name}: {format}, expected {_formats()}; export it as JPEG{heic}")
        try:
            with _quiet():
                if heif:
                    data = file.read()  # all of it, as pillow-heif does
                    for width, height in _HEIC_SIZE.findall(data):
                        _check_pixels(int.from_bytes(width, "big"), int.from_bytes(height, "big"), name)
                    return cast(Image.Image, heif.HeifImageFile(io.BytesIO(data)))
                if start.startswith(_JPEG):  # Image.open() would also read the table of a phone's further pictures
                    return JpegImagePlugin.JpegImageFile(file)
                return Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as error:
            got = f"data that starts with {start[:16]!r}" if start else "no data"
            raise ImageError(f"{name}: not a picture: got {got}, expected a {_formats()} file") from error
        except Image.DecompressionBombError as error:  # Pillow's own limit, which it checks before we can see the size
            raise ImageError(f"{name}: {error} Expected at most {MAX_PIXELS:,} pixels; make it smaller") from error


def _pillow_heif() -> Any:
    """The package that decodes HEIC, imported for the first such photo; None where it is not installed."""
    try:
        return import_module("pillow_heif")
    except ImportError:
        return None


def _check_scans(file: BinaryIO, name: str) -> None:
    file.seek(0)
    scans, tail = 0, b""
    while chunk := file.read(1 << 20):
        scans += len(_SCAN.findall(tail + chunk))
        tail = chunk[1 - _SCAN_BYTES :]
    if scans > MAX_SCANS:
        raise ImageError(
            f"{name}: the JPEG has {scans:,} scans, expected at most {MAX_SCANS}, because decoding goes over the whole "
            "picture for each; save it again with an ordinary program"
        )


def _shrink(image: Image.Image, image_size: int) -> None:
    """Let the decoder divide both sides, where they divide evenly: a rounded side would stretch the picture."""
    for scale in (8, 4, 2):
        if min(image.size) >= scale * image_size and not (image.width % scale or image.height % scale):
            image.draft(image.mode, (image.width // scale, image.height // scale))
            return


def _finish(image: Image.Image, name: str) -> Image.Image:
    _check_size(*image.size, name)
    with _large_lock if image.width * image.height > LARGE_PIXELS else nullcontext(), _refusing(name):
        image.load()
        return _upright(_to_rgb(image, name), _turn(image))


def _check_size(width: int, height: int, name: str) -> None:
    got = f"{name}: the picture is {width} x {height} pixels"
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{got}, expected at least {MIN_SIDE} on each side; send a larger picture")
    _check_pixels(width, height, name)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"{got}, expected one side at most {MAX_ASPECT_RATIO} times the other; cut out the part that matters"
        )


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        got = f"{name}: the picture is {width} x {height} pixels"
        raise ImageError(f"{got}, expected at most {MAX_PIXELS:,} in all; make it smaller before sending it")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{name}: the picture has mode 'F', whose range is unknown; convert it to 'RGB' or 'L'")
    if image.mode in _16_BIT_MODES:  # Pillow's own convert() would cut every value at 255
        to_8_bits = ((np.arange(1 << 16) * 255 + 32767) // 65535).astype(np.uint8)  # a table: no wider copy of them all
        grey = np.asarray(image)
        image = Image.fromarray(to_8_bits[grey.clip(0, 65535) if image.mode == "I" else grey])
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")  # which copies one that is RGBA
    page = Image.new("RGB", image.size, "white")
    page.paste(rgba, mask=rgba)
    return page


def _turn(image: Image.Image) -> Image.Transpose | None:
    exif = image.info.get("exif")
    if isinstance(exif, bytes) and exif.startswith(3 * _EXIF_HEADER):  # read by some releases of Pillow, not by others
        return None
    try:
        with _quiet():
            return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return None  # damaged metadata is no reason to lose the picture


def _upright(copy: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """``copy`` turned, and without the tags that would have it turned again: Pillow's copies carry them along."""
    for tag in _ORIENTATION_IN:
        copy.info.pop(tag, None)
    return copy if turn is None else copy.transpose(turn)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Make whatever a decoder raises an ImageError: each format, and each release, has its own habits."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise ImageError(
            f"{name}: the picture is damaged or incomplete ({reason}); send the file again, or another one"
        ) from error


def _formats() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings about size and metadata to ourselves: each case is refused, or does not matter.

    ``catch_warnings`` swaps a global and is not thread-safe before Python 3.14, hence the lock; no pixel is decoded
    under it.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
