"""How a question becomes CLIP's token ids: byte pair encoding without torch.

The ids equal ``clip.tokenize``'s (Radford et al. 2021, section 2.4; the byte alphabet is GPT-2's, Radford et al. 2019,
section 2.2). So the literal texts ``<|startoftext|>`` and ``<|endoftext|>`` in a question become the special tokens,
as they do there: a question can end its own encoding early, and no more than that.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vizwiz_client.contract.errors import QuestionError
from vizwiz_client.contract.tensors import CONTEXT_LENGTH, TOKEN_LENGTHS

START_OF_TEXT = 49406
END_OF_TEXT = 49407
MAX_CHARACTERS = 5_000  # one endless word takes time quadratic in its length: half a second at this one

_MERGES_FILE = "clip_merges.txt.gz"  # one merge a line, best first; made by client/make_merges.py
_SPECIAL = {"<|startoftext|>": START_OF_TEXT, "<|endoftext|>": END_OF_TEXT}
_WORD = r"""(?xi)
    <\|startoftext\|> | <\|endoftext\|>
    | '(?: s | t | re | ve | m | ll | d )   # English endings
    | \p{L}+                                # letters
    | \p{N}                                 # one digit at a time
    | [^\s\p{L}\p{N}]+                      # anything else
"""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The ids of one question: int32 [T], T in ``TOKEN_LENGTHS``; zeros follow the end token."""

    ids: npt.NDArray[np.int32]
    truncated: bool  # the question's end did not fit and was cut off


def tokenize(question: str) -> Tokens:
    """Encode ``question`` at the shortest of ``TOKEN_LENGTHS`` that holds it, start and end tokens included.

    Padded to 77, the ids equal ``clip.tokenize(question, truncate=True)``: what goes past 77 tokens is cut, and the end
    token kept, because CLIP reads the feature there.

    Raises QuestionError: no words, or more than MAX_CHARACTERS characters.
    """
    if len(question) > MAX_CHARACTERS:
        raise QuestionError(
            f"the question has {len(question):,} characters, expected at most {MAX_CHARACTERS:,}; "
            f"CLIP reads the first {CONTEXT_LENGTH - 2} tokens, about 50 words: ask it shorter"
        )
    ids = [START_OF_TEXT]
    for word in _words(question):
        ids += _word_ids(word)
        if len(ids) >= CONTEXT_LENGTH:
            break
    if len(ids) == 1:
        raise QuestionError(f"the question is {question!r}, expected words; ask something, such as 'what is this?'")
    truncated = len(ids) >= CONTEXT_LENGTH
    del ids[CONTEXT_LENGTH - 1 :]
    ids.append(END_OF_TEXT)
    length = next(length for length in TOKEN_LENGTHS if length >= len(ids))
    return Tokens(pad(np.array(ids, dtype=np.int32), length), truncated)


def pad(ids: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.int32]:
    """Append zeros to ``ids`` up to int32 [length]; CLIP's text feature does not depend on them (it is causal)."""
    if len(ids) > length:
        raise ValueError(f"got {len(ids)} token ids to pad to {length}; expected no more than {length}")
    return np.pad(ids, (0, length - len(ids)))


def _words(question: str) -> Iterator[str]:
    import ftfy  # imported by the first question (48 ms with regex), not by every program that imports this module
    import regex  # the standard library's re knows no \p{L}, and another white space

    text = html.unescape(html.unescape(ftfy.fix_text(question))).strip()
    text = regex.sub(r"\s+", " ", text).strip().lower()
    return (match.group() for match in regex.finditer(_WORD, text))


@lru_cache(maxsize=10_000)
def _word_ids(word: str) -> tuple[int, ...]:
    if word in _SPECIAL:
        return (_SPECIAL[word],)
    symbols, merges = _byte_symbols(), _merges()
    ids = [symbols[byte] for byte in word.encode()]
    ids[-1] += 256  # the same byte, at the end of a word
    while len(ids) > 1:
        # a merge's id is its rank: the lowest is the best
        merged, pair = min((merges.get(pair, END_OF_TEXT), pair) for pair in pairwise(ids))
        if merged == END_OF_TEXT:
            break
        ids = _replace(ids, pair, merged)
    return tuple(ids)


def _replace(ids: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    """Return ``ids`` with every occurrence of ``pair``, from the left, replaced by ``merged``."""
    replaced = []
    position = 0
    while position < len(ids):
        found = ids[position] == pair[0] and position + 1 < len(ids) and ids[position + 1] == pair[1]
        replaced.append(merged if found else ids[position])
        position += 2 if found else 1
    return replaced


@cache
def _byte_symbols() -> dict[int, int]:
    """Byte -> its symbol's id: first the bytes that Latin-1 prints, then the others, each in order."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: symbol for symbol, byte in enumerate(printed + others)}


@cache
def _merges() -> dict[tuple[int, int], int]:
    """Two neighbouring symbols -> the one they become. Ids 0 to 255 are bytes, 256 to 511 bytes that end a word."""
    # the table writes a byte that Latin-1 does not print as the next character from U+0100 on
    characters = [chr(byte) if symbol < 188 else chr(256 + symbol - 188) for byte, symbol in _byte_symbols().items()]
    ids = {name: symbol for symbol, name in enumerate(characters + [f"{character}</w>" for character in characters])}
    merges = {}
    table = resources.files(__package__).joinpath(_MERGES_FILE).read_bytes()
    for line in gzip.decompress(table).decode().splitlines():
        first, second = line.split(" ")
        merges[ids[first], ids[second]] = ids[first + second] = len(ids)
    return merges
