"""CLIP's tokenizer without torch: byte pair encoding of a question.

The ids equal those of ``clip.tokenize`` (Radford et al. 2021, section 2.4; byte alphabet of GPT-2, Radford et al. 2019,
section 2.2). As there, the literal texts ``<|startoftext|>`` and ``<|endoftext|>`` become the special tokens, so a
question can end its own encoding early.
"""

from __future__ import annotations

import html
import pkgutil
import re
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vizwiz_client.contract.errors import QuestionError
from vizwiz_client.contract.tensors import CONTEXT_LENGTH, TOKEN_LENGTHS

START_OF_TEXT = 49406
END_OF_TEXT = 49407
MAX_CHARACTERS = 5_000

_CACHED_LETTERS = 32  # so that the cache stays small whatever people send
_GONE = -1  # a symbol that was merged into the one before it

_MERGES_FILE = "clip_merges.bin"  # written by client/make_merges.py
_SPECIAL = {"<|startoftext|>": START_OF_TEXT, "<|endoftext|>": END_OF_TEXT}
_WORD = r"""(?xi)
    <\|startoftext\|> | <\|endoftext\|>
    | '(?: s | t | re | ve | m | ll | d )   # English endings
    | \p{L}+                                # letters
    | \p{N}                                 # one digit at a time
    | [^\s\p{L}\p{N}]+                      # anything else
"""
# ASCII that ftfy and HTML unescaping do not change: no "&" and no control characters. They do change line ends, which
# are white space either way.
_PLAIN = re.compile(r"[\t\n\r -%'-~]*")
_PLAIN_WORD = re.compile(  # finds what _WORD finds in such text, in lower case
    r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|[a-z]+|[0-9]|[^\sa-z0-9]+"
)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of one question: int32 [T], T in ``TOKEN_LENGTHS``; zeros follow the end token."""

    ids: npt.NDArray[np.int32]
    truncated: bool  # whether the question was longer than 77 tokens, and its end was cut off


def tokenize(question: str) -> Tokens:
    """Token ids of a question, including start and end token.

    Padded to 77, the ids equal ``clip.tokenize(question, truncate=True)``. The end of a longer question is cut
    off and the end token kept, because CLIP reads the text feature there.

    Args:
        question: text of at most MAX_CHARACTERS characters.

    Returns:
        The ids, int32 [T], padded to the shortest T of ``TOKEN_LENGTHS`` that holds them.

    Raises:
        QuestionError: no words, over MAX_CHARACTERS characters, or not a str.
    """
    if not isinstance(question, str):
        raise QuestionError(
            f"got a question of type {type(question).__name__}, expected text; ask something, such as 'what is this?'"
        )
    if len(question) > MAX_CHARACTERS:
        raise QuestionError(
            f"the question has {len(question):,} characters, expected at most {MAX_CHARACTERS:,}; "
            f"CLIP reads the first {CONTEXT_LENGTH - 2} tokens, about 50 words: ask it shorter"
        )
    ids = [START_OF_TEXT]
    for word in _words(question):
        ids += _word_ids(word) if len(word) <= _CACHED_LETTERS else _encode_word(word)
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
    """Pad ``ids`` with zeros to int32 [length]. They do not change CLIP's text feature: its attention is causal."""
    if len(ids) > length:
        raise ValueError(f"got {len(ids)} token ids to pad to {length}; expected no more than {length}")
    return np.pad(ids, (0, length - len(ids)))


def _words(question: str) -> Iterator[str]:
    if _PLAIN.fullmatch(question):
        return iter(_PLAIN_WORD.findall(question.lower()))
    import ftfy  # 48 ms with regex, which most questions do not need
    import regex  # re has no \p{L}, and another definition of white space

    text = html.unescape(html.unescape(ftfy.fix_text(question))).strip()
    text = regex.sub(r"\s+", " ", text).strip().lower()
    return (match.group() for match in regex.finditer(_WORD, text))


@lru_cache(maxsize=10_000)
def _word_ids(word: str) -> tuple[int, ...]:
    return tuple(_encode_word(word))


def _encode_word(word: str) -> list[int]:
    """Token ids of a word: merge the pair of the lowest rank, from the left, until no pair has one.

    A merge's id is its rank, and a merge of merges has a higher rank than they have. So pairs can wait in a heap, and
    the time grows with n log n, not with the square of the word's length.
    """
    if word in _SPECIAL:
        return [_SPECIAL[word]]
    symbols, merge = _byte_symbols(), _merges().find
    ids = [symbols[byte] for byte in word.encode()]
    ids[-1] += 256  # the symbol of the same byte at the end of a word
    end = len(ids)
    following, preceding = [*range(1, end + 1)], [*range(-1, end)]  # position of the next and of the last symbol
    pairs = [(merge(first, second), left) for left, (first, second) in enumerate(pairwise(ids))]
    heapify(pairs)
    while pairs and (lowest := heappop(pairs))[0] != END_OF_TEXT:
        merged, left = lowest
        right = following[left]
        if ids[left] == _GONE or right == end or merge(ids[left], ids[right]) != merged:
            continue  # one of the two was merged with another symbol
        ids[left], ids[right] = merged, _GONE
        following[left] = following[right]
        preceding[following[left]] = left
        if preceding[left] >= 0:
            heappush(pairs, (merge(ids[preceding[left]], merged), preceding[left]))
        if following[left] < end:
            heappush(pairs, (merge(merged, ids[following[left]]), left))
    return [symbol for symbol in ids if symbol != _GONE]


@cache
def _byte_symbols() -> dict[int, int]:
    """Symbol id of each byte: printable Latin-1 first, then the others, each in order."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: symbol for symbol, byte in enumerate(printed + others)}


class _Merges:
    """Table of merges, in the file format of ``client/make_merges.py``."""

    def __init__(self, table: bytes) -> None:
        numbers = array("H", table)
        if sys.byteorder == "big":
            numbers.byteswap()
        symbols = START_OF_TEXT + 1
        count = symbols - 1 - 512
        self._starts = numbers[:symbols]
        self._seconds, self._merged = numbers[symbols : symbols + count], numbers[symbols + count :]

    def find(self, first: int, second: int) -> int:
        """The symbol that replaces the pair; END_OF_TEXT if it is not merged."""
        end = self._starts[first + 1]
        position = bisect_left(self._seconds, second, self._starts[first], end)
        found = position < end and self._seconds[position] == second
        return self._merged[position] if found else END_OF_TEXT


@cache
def _merges() -> _Merges:
    table = pkgutil.get_data(__name__, _MERGES_FILE)  # importlib.resources takes 30 ms to import
    assert table is not None, "the loader of this package cannot read files"
    return _Merges(table)
