"""Photos that a decoder trips over, for the tests of every place that takes photos."""

from __future__ import annotations

import struct
import zlib


def png(width: int, height: int, colour_type: int, pixels: bytes) -> bytes:
    """A PNG of 8 bits a sample, made of what is given, which need not go together."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(pixels), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


# Pillow raises AssertionError (13) or AttributeError (10.3), when its pixels are decoded.
PNG_WITHOUT_PALETTE = png(40, 30, 3, (b"\0" + bytes(40)) * 30)
