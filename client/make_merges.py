"""Write CLIP's merges table, and its licence, beside the tokenizer, from the installed ``clip`` package.

    python client/make_merges.py

OpenAI's table has not changed since 2021, so its result is committed. The original lists 262,144 merges as text; CLIP
reads the first 48,894. The file holds only those, as numbers, because reading the text takes 0.1 s.

The file is three arrays of little-endian uint16, one after the other. Symbols 0 to 255 are bytes, 256 to 511 are bytes
that end a word, and 512 and later are results of merges. Merges are sorted by their first symbol, then by their second:

    starts   [49,407]  where the merges of each first symbol start (the last: where they end)
    seconds  [48,894]  second symbol of each merge
    merged   [48,894]  the symbol that it makes; the lowest is merged first
"""

from __future__ import annotations

import gzip
import sys
from array import array
from bisect import bisect_left
from importlib.metadata import files
from pathlib import Path

CONTRACT = Path(__file__).parent / "vizwiz_client" / "contract"
DISTRIBUTION = "clip-anytorch"  # OpenAI's CLIP on the package index
SYMBOLS = 49_408 - 2  # CLIP's vocabulary without the special tokens: the bytes, also as word ends, and the merges
USED_MERGES = SYMBOLS - 512


def original(name: str) -> bytes:
    """Return the content of the one file called ``name`` in the installed distribution."""
    (path,) = (path for path in files(DISTRIBUTION) or () if path.name == name)
    return Path(path.locate()).read_bytes()


def used_merges() -> bytes:
    """Return the merges that CLIP reads, one a line, best first; the file's first line is a heading."""
    lines = gzip.decompress(original("bpe_simple_vocab_16e6.txt.gz")).split(b"\n")
    return b"\n".join(lines[1 : 1 + USED_MERGES]) + b"\n"


def symbols() -> dict[str, int]:
    """Symbol of each byte, by the character that the text has for it: printable Latin-1, then U+0100 and later."""
    characters = [*map(chr, [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])]
    characters += map(chr, range(0x100, 0x100 + 256 - len(characters)))
    return {name: symbol for symbol, name in enumerate(characters + [f"{character}</w>" for character in characters])}


def table() -> bytes:
    """Return the file's content."""
    ids = symbols()
    merges = []
    for line in used_merges().decode().splitlines():
        first, second = line.split(" ")
        merges.append((ids[first], ids[second], len(ids)))
        ids[first + second] = len(ids)
    merges.sort()
    firsts = [first for first, _, _ in merges]
    starts = [bisect_left(firsts, symbol) for symbol in range(SYMBOLS + 1)]
    numbers = array("H", [*starts, *(second for _, second, _ in merges), *(merged for _, _, merged in merges)])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def main() -> None:
    """Write both files."""
    (CONTRACT / "clip_merges.bin").write_bytes(table())
    (CONTRACT / "LICENSE.CLIP").write_bytes(original("LICENSE"))


if __name__ == "__main__":
    main()
