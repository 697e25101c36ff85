"""How a photo becomes pixels: the one implementation, for training and for serving.

:func:`load_photo` refuses what cannot be used, decodes, turns upright and makes RGB; :func:`to_pixels` resizes and
crops exactly as CLIP's own preprocess does on an RGB picture (``clip._transform``: ``Resize`` bicubic, ``CenterCrop``).
Mean and standard deviation belong to the image graph.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from vizwiz_client.contract.errors import ImageError

GEOMETRY_VERSION = 1  # raised when a file gives other pixels than before: features cached under another one are stale

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # of an animation, the first frame
MIN_SIDE = 16  # pixels; the smallest photos of VizWiz are 48 x 64
MAX_PIXELS = 110_000_000  # a 108-megapixel phone's photo; 330 MB decoded
MAX_ASPECT_RATIO = 10  # bounds the resized picture too: without it, 1 x 20,000 pixels become S x 20,000 S

Photo = str | Path | bytes | Image.Image

# What Pillow's decoders raise on damaged data; each format, and each release, has its own habits.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
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
_warnings_lock = threading.Lock()


def load_photo(source: Photo) -> Image.Image:
    """Decode a photo: upright, mode "RGB", in memory, at its own size.

    ``source`` is a path, the bytes of a file, or a PIL image (turned by its own EXIF tag, when it has one, as a file
    is). The size is checked before the pixels are decoded. Transparent parts become white, the page that screenshots
    and logos with a transparent background are drawn for; dropping the alpha channel would show what lies hidden
    under it. 16-bit grey is scaled to 8 bits.

    Raises ImageError: not one of FORMATS, damaged or truncated, a side under MIN_SIDE, over MAX_PIXELS pixels, one
    side over MAX_ASPECT_RATIO times the other, or a file that cannot be read.
    """
    if isinstance(source, Image.Image):
        return _finish(source, "the photo")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), "the photo")
    try:
        with Path(source).open("rb") as file:
            return _decode(file, str(source))
    except OSError as error:
        raise ImageError(
            f"{source}: cannot be read ({error.strerror}); expected the path of a {_formats()} file"
        ) from error


def to_pixels(photo: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    """Resize and crop ``photo``, as :func:`load_photo` returns it, to RGB pixels uint8 [side, side, 3].

    The shorter side becomes ``side`` (bicubic), the longer one is cropped around its centre.
    """
    width, height = photo.size
    longer = int(side * max(width, height) / min(width, height))
    new_width, new_height = (side, longer) if width <= height else (longer, side)
    resized = photo.resize((new_width, new_height), Image.Resampling.BICUBIC)
    # torchvision rounds half an odd margin to even, so the crop is not always at floor(margin / 2)
    left, top = round((new_width - side) / 2), round((new_height - side) / 2)
    return np.array(resized.crop((left, top, left + side, top + side)))


def _decode(file: BinaryIO, name: str) -> Image.Image:
    start = file.read(16)
    file.seek(0)
    try:
        with _quiet():
            image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        got = f"data that starts with {start!r}" if start else "no data"
        raise ImageError(f"{name}: not a picture: got {got}, expected a {_formats()} file") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, which it checks before we can ask for the size
        raise ImageError(f"{name}: {error} Expected at most {MAX_PIXELS:,} pixels; make it smaller") from error
    except _DAMAGE as error:
        raise _damaged(name, error) from error
    with image:
        return _finish(image, name)


def _finish(image: Image.Image, name: str) -> Image.Image:
    _check_size(*image.size, name)
    try:
        image.load()
        rgb = _to_rgb(image, name)
    except ImageError:
        raise
    except _DAMAGE as error:
        raise _damaged(name, error) from error
    turn = _turn(image)
    return rgb if turn is None else rgb.transpose(turn)


def _check_size(width: int, height: int, name: str) -> None:
    got = f"{name}: the picture is {width} x {height} pixels"
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{got}, expected at least {MIN_SIDE} on each side; send a larger picture")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{got}, expected at most {MAX_PIXELS:,} in all; make it smaller before sending it")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"{got}, expected one side at most {MAX_ASPECT_RATIO} times the other; cut out the part that matters"
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{name}: the picture has mode 'F', whose range is unknown; convert it to 'RGB' or 'L'")
    if image.mode in _16_BIT_MODES:  # Pillow's own convert() would cut every value at 255
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(rgba, mask=rgba.getchannel("A"))
    return page


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        with _quiet():
            return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return None  # damaged metadata is no reason to lose the picture


def _damaged(name: str, error: BaseException) -> ImageError:
    return ImageError(f"{name}: the picture is damaged or incomplete ({error}); send the file again, or another one")


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
