"""Image preprocessing: a photo to uint8 pixels, for training and serving.

:func:`load_photo` validates, decodes, applies the EXIF orientation and converts to RGB. :func:`to_pixels` resizes and
crops to the same pixels as CLIP's own preprocess (``clip._transform``: bicubic ``Resize``, ``CenterCrop``), or squashes
as open_clip's does (``resize_mode="squash"``). Mean and standard deviation are part of the image graph.
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

PREPROCESSING_VERSION = 1  # part of the cache key of features: raise it when JPEG files give other pixels than before

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # the first frame of an animation
MIN_SIDE = 16  # pixels; VizWiz's smallest photos are 48 x 64
MAX_PIXELS = 110_000_000  # phones have up to 108 megapixels; 440 MB decoded (Pillow stores 4 bytes a pixel)
LARGE_PIXELS = 25_000_000  # larger photos are decoded one at a time: conversion holds up to three copies
MAX_FILE_BYTES = 500_000_000  # file objects may be endless; MAX_PIXELS uncompressed are 330 MB
MAX_SCANS = 100  # progressive JPEGs have about 10; the decoder passes over the whole image for each
MAX_ASPECT_RATIO = 10  # bounds the resized image: otherwise 1 x 20,000 pixels become S x 20,000 S

Photo = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[np.uint8]

# A JPEG's "start of scan" marker with 1 to 4 components; its length field excludes chance matches in other data.
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_SCAN_BYTES = 5
_JPEG_MAGIC = b"\xff\xd8\xff"
_MAGIC_BYTES = 1024  # enough of a file to recognise its format
_OTHER_FORMATS = {  # named in errors; HEIC is decoded if pillow-heif is installed
    "AVIF": re.compile(rb"....ftyp(?:....){0,12}?avi[fs]", re.DOTALL),  # brands: https://mp4ra.org
    "HEIC": re.compile(rb"....ftyp(?:....){0,12}?(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "PDF": re.compile(rb"\s*%PDF-"),
    "SVG": re.compile(rb"(?:\xef\xbb\xbf)?\s*(?=<[?!s])(?!.*<html).*?<(?:!DOCTYPE\s+)?svg[\s>]", re.DOTALL),
}
# All sizes in a HEIC file: the image may be a crop of a larger one (clap), or a grid of tiles.
_HEIC_SIZE = re.compile(rb"ispe\0...(....)(....)", re.DOTALL)
_16_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow before 11.3 opens 16-bit PNGs as "I"
_TRANSPOSE = {  # of each EXIF orientation; https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf, table 4.6.4
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Keys of ``Image.info`` in which Pillow's getexif() finds the orientation.
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
_EXIF_HEADER = b"Exif\0\0"
_NAME = "the photo"  # in errors, if the source has no file name
_warnings_lock = threading.Lock()
_large_lock = threading.Lock()


def _renew_locks() -> None:
    """In a forked child, whose parent may have held them: their owners do not run there."""
    global _warnings_lock, _large_lock
    _warnings_lock, _large_lock = threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_locks)


def load_photo(source: Photo, draft_size: int | None = None) -> Image.Image:
    """Decode a photo to an upright RGB image at its own size.

    Transparent parts become white, the page that most graphics with transparency are drawn for; dropping the alpha
    channel would show colours hidden under it. 16-bit grey is scaled to 8 bits. Colour profiles are ignored.

    Args:
        source: path of a regular file, bytes of a file, binary file object (rewound if possible), PIL image (its own
            EXIF orientation is applied), or NumPy array uint8 [H, W, 3] (RGB) or [H, W] (grey).
        draft_size: let the JPEG decoder shrink the photo to a half, quarter or eighth whose shorter side has at least
            this many pixels. Several times faster, but the pixels differ; None decodes exactly.

    Returns:
        The image, mode "RGB", in memory. Its size was checked before the pixels were decoded.

    Raises:
        ImageError: not one of FORMATS (nor HEIC with pillow-heif installed), damaged or truncated, a side under
            MIN_SIDE, over MAX_PIXELS pixels, an aspect ratio over MAX_ASPECT_RATIO, over MAX_SCANS scans or
            MAX_FILE_BYTES bytes, unreadable, not a regular file, or a ``source`` of another type. Every exception of a
            decoder becomes an ImageError, except MemoryError.
    """
    photo = materialize(source)
    if isinstance(photo, Image.Image):
        return photo.convert("RGB") if photo.mode != "RGB" else photo
    if isinstance(photo, bytes):
        return _decode(io.BytesIO(photo), _NAME, draft_size)
    with open_file(photo) as file:
        return _decode(file, os.fsdecode(photo), draft_size)


def check_header(path: str | os.PathLike[str]) -> None:
    """Check format and size of a photo's file without decoding its pixels.

    Raises:
        ImageError: as :func:`load_photo`.
    """
    name = os.fsdecode(path)
    with open_file(path) as file, _open(file, name) as image:
        _check_size(*image.size, name)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a photo's file. Pipes and devices are refused without waiting: they may never end.

    Raises:
        ImageError: not a regular file, over MAX_FILE_BYTES bytes, or unreadable.
    """
    name = os.fsdecode(path)
    try:
        _check_regular(os.stat(path), name)  # noqa: PTH116 - before open(), which has side effects on some devices
        file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115 - the caller closes it
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{name}: cannot be read ({reason}); expected the path of a {_formats()} file") from error
    try:
        _check_regular(os.fstat(file.fileno()), name)  # the file may have been replaced since stat()
    except ImageError:
        file.close()
        raise
    return file


def materialize(source: Photo) -> str | os.PathLike[str] | bytes | Image.Image:
    """Copy file objects, images and arrays into memory, so that the caller may close or change them.

    Args:
        source: a photo, as for :func:`load_photo`.

    Returns:
        A photo that :func:`load_photo` can read later: paths as they are, file objects as bytes, PIL images as upright
        RGB images, arrays as RGB or grey images.

    Raises:
        ImageError: as :func:`load_photo`.
    """
    if isinstance(source, str | os.PathLike):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        with _decoder_errors(_NAME):
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


def to_pixels(photo: Image.Image, image_size: int, *, squash: bool = False) -> npt.NDArray[np.uint8]:
    """Resize the shorter side to ``image_size`` (bicubic), and crop the longer one around its centre.

    Args:
        photo: an RGB image, as :func:`load_photo` returns it.
        image_size: side of the result in pixels.
        squash: resize both sides to ``image_size`` instead, which distorts the photo but loses no part of it.

    Returns:
        RGB pixels, uint8 [image_size, image_size, 3]; writeable.
    """
    if squash:
        return np.array(photo.resize((image_size, image_size), Image.Resampling.BICUBIC))
    width, height = photo.size
    longer = int(image_size * max(width, height) / min(width, height))
    new_width, new_height = (image_size, longer) if width <= height else (longer, image_size)
    resized = photo.resize((new_width, new_height), Image.Resampling.BICUBIC)
    # torchvision rounds half an odd margin to even, so the crop is not always at floor(margin / 2)
    left, top = round((new_width - image_size) / 2), round((new_height - image_size) / 2)
    return np.array(resized.crop((left, top, left + image_size, top + image_size)))


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no O_NONBLOCK


def _check_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # open() of a folder raises by itself
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
        with suppress(OSError):  # not seekable: read from the current position
            file.seek(0)
        data = file.read(MAX_FILE_BYTES + 1)
    except MemoryError:
        raise
    except Exception as error:  # file objects raise errors of any type
        reason = str(error) or type(error).__name__
        raise ImageError(f"{_NAME}: the file object cannot be read ({reason}); expected one that is open") from error
    if not isinstance(data, bytes):
        raise ImageError(
            f"{_NAME}: the file object gives {type(data).__name__}, expected bytes: open it with mode 'rb'"
        )
    _check_bytes(len(data), _NAME)
    return data


def _decode(file: BinaryIO, name: str, draft_size: int | None) -> Image.Image:
    with _open(file, name) as image, _decoder_errors(name):
        _check_size(*image.size, name)
        if image.format == "JPEG":
            _check_scans(file, name)
        if draft_size is not None:
            _shrink(image, draft_size)
        return _finish(image, name)


def _open(file: BinaryIO, name: str) -> Image.Image:
    """Recognise the format and read the header, without decoding pixels."""
    with _decoder_errors(name):
        head = file.read(_MAGIC_BYTES)
        file.seek(0)
        format = next((format for format, pattern in _OTHER_FORMATS.items() if pattern.match(head)), None)
        heif = _pillow_heif() if format == "HEIC" else None
        if format and not heif:
            heic = ", or install pillow-heif, which decodes it" if format == "HEIC" else ""
            raise ImageError(f"{name}: the file is {format}, expected {_formats()}; export it as JPEG{heic}")
        try:
            with _suppress_warnings():
                if heif:
                    data = file.read()  # pillow-heif reads the whole file anyway
                    for width, height in _HEIC_SIZE.findall(data):
                        _check_pixels(int.from_bytes(width, "big"), int.from_bytes(height, "big"), name)
                    return cast(Image.Image, heif.HeifImageFile(io.BytesIO(data)))
                if head.startswith(_JPEG_MAGIC):
                    # Image.open() would parse a phone's table of further pictures (MPO), and fail on a broken one
                    return JpegImagePlugin.JpegImageFile(file)
                return Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as error:
            got = f"data that starts with {head[:16]!r}" if head else "no data"
            raise ImageError(f"{name}: not a picture: got {got}, expected a {_formats()} file") from error
        except Image.DecompressionBombError as error:  # Pillow's own limit, checked before we can read the size
            [pixels, *_] = re.findall(r"[0-9]+", str(error))
            raise _too_many_pixels(f"{name}: the picture has {int(pixels):,} pixels") from error


def _pillow_heif() -> Any:
    """The package that decodes HEIC; None if it is not installed."""
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
    """Let the decoder divide both sides, if they divide evenly: a rounded side would stretch the image."""
    for scale in (8, 4, 2):
        if min(image.size) >= scale * image_size and not (image.width % scale or image.height % scale):
            image.draft(image.mode, (image.width // scale, image.height // scale))
            return


def _finish(image: Image.Image, name: str) -> Image.Image:
    _check_size(*image.size, name)
    with _large_lock if image.width * image.height > LARGE_PIXELS else nullcontext(), _decoder_errors(name):
        image.load()
        return _apply_orientation(_to_rgb(image, name), _transpose(image))


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
        raise _too_many_pixels(f"{name}: the picture is {width} x {height} pixels")


def _too_many_pixels(got: str) -> ImageError:
    return ImageError(f"{got}, expected at most {MAX_PIXELS:,} in all; make it smaller before sending it")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{name}: the picture has mode 'F', whose range is unknown; convert it to 'RGB' or 'L'")
    if image.mode in _16_BIT_MODES:
        # Pillow's convert() would clip every value at 255. The lookup table avoids a wider copy of the image.
        to_8_bits = ((np.arange(1 << 16) * 255 + 32767) // 65535).astype(np.uint8)
        grey, transparent = np.asarray(image), image.info.get("transparency")
        levels = to_8_bits[grey.clip(0, 65535) if image.mode == "I" else grey]
        if isinstance(transparent, int):  # one of 65,536 greys: the conversion to 256 would lose which
            levels[grey == transparent] = 255
        image = Image.fromarray(levels)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")  # convert() would copy an RGBA image
    page = Image.new("RGB", image.size, "white")
    page.paste(rgba, mask=rgba)
    return page


def _transpose(image: Image.Image) -> Image.Transpose | None:
    exif = image.info.get("exif")
    if isinstance(exif, bytes) and exif.startswith(3 * _EXIF_HEADER):  # not all releases of Pillow read three
        return None
    try:
        with _suppress_warnings():
            return _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return None  # damaged metadata is no reason to lose the picture


def _apply_orientation(copy: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    """Transpose ``copy``, and remove the EXIF tags that Pillow copied along: they would be applied again."""
    for key in _ORIENTATION_KEYS:
        copy.info.pop(key, None)
    return copy if transpose is None else copy.transpose(transpose)


@contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    """Turn every exception of a decoder into ImageError: they differ between formats and releases."""
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
def _suppress_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings about size and metadata: we refuse the photo, or the warning does not matter.

    ``catch_warnings`` changes a global and is not thread-safe before Python 3.14, hence the lock. No pixels are decoded
    under it.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
