"""Photo files for the tests, damaged ones among them."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """``image`` as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, colour_type: int, pixels: bytes) -> bytes:
    """A PNG of 8 bits a sample; header and pixels need not match."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(pixels), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


# Pillow raises AssertionError (13) or AttributeError (10.3), when its pixels are decoded.
PNG_WITHOUT_PALETTE = png(40, 30, 3, (b"\0" + bytes(40)) * 30)
