"""Write CLIP's merges table, and its licence, beside the tokenizer, from the installed ``clip`` package.

    python client/make_merges.py

Run once, and again only if OpenAI's table changed, which it has not since 2021. The original lists 262,144 merges of
which CLIP reads the first 48,894: only those ship.
"""

from __future__ import annotations

import gzip
from importlib.metadata import files
from pathlib import Path

CONTRACT = Path(__file__).parent / "vizwiz_client" / "contract"
DISTRIBUTION = "clip-anytorch"  # OpenAI's CLIP on the package index
USED_MERGES = 49_408 - 2 - 512  # CLIP's vocabulary is the special tokens, the bytes (also as word ends) and the merges


def original(name: str) -> bytes:
    """Return the content of the one file called ``name`` in the installed distribution."""
    (path,) = (path for path in files(DISTRIBUTION) or () if path.name == name)
    return Path(path.locate()).read_bytes()


def used_merges() -> bytes:
    """Return the merges that CLIP reads, one a line, best first; the file's first line is a heading."""
    lines = gzip.decompress(original("bpe_simple_vocab_16e6.txt.gz")).split(b"\n")
    return b"\n".join(lines[1 : 1 + USED_MERGES]) + b"\n"


def main() -> None:
    """Write both files."""
    (CONTRACT / "clip_merges.txt.gz").write_bytes(gzip.compress(used_merges(), mtime=0))
    (CONTRACT / "LICENSE.CLIP").write_bytes(original("LICENSE"))


if __name__ == "__main__":
    main()
