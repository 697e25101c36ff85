"""How a question becomes CLIP's token ids: byte pair encoding without torch.

The ids equal ``clip.tokenize``'s (Radford et al. 2021, section 2.4; the byte alphabet is GPT-2's, Radford et al. 2019,
section 2.2). So the literal texts ``<|startoftext|>`` and ``<|endoftext|>`` in a question become the special tokens,
as they do there: a question can end its own encoding early, and no more than that.
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
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vizwiz_client.contract.errors import QuestionError
from vizwiz_client.contract.tensors import CONTEXT_LENGTH, TOKEN_LENGTHS

START_OF_TEXT = 49406
END_OF_TEXT = 49407
MAX_CHARACTERS = 5_000  # one endless word takes time quadratic in its length: half a second at this one

_MERGES_FILE = "clip_merges.bin"  # made by client/make_merges.py
_SPECIAL = {"<|startoftext|>": START_OF_TEXT, "<|endoftext|>": END_OF_TEXT}
_WORD = r"""(?xi)
    <\|startoftext\|> | <\|endoftext\|>
    | '(?: s | t | re | ve | m | ll | d )   # English endings
    | \p{L}+                                # letters
    | \p{N}                                 # one digit at a time
    | [^\s\p{L}\p{N}]+                      # anything else
"""
# ASCII that ftfy and HTML unescaping leave as it is, but for line ends, which are white space either way. Without "&",
# and without control characters: ftfy drops some, terminal escapes whole.
_PLAIN = re.compile(r"[\t\n\r -%'-~]*")
_PLAIN_WORD = re.compile(  # what _WORD finds there, in lower case
    r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|[a-z]+|[0-9]|[^\sa-z0-9]+"
)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The ids of one question: int32 [T], T in ``TOKEN_LENGTHS``; zeros follow the end token."""

    ids: npt.NDArray[np.int32]
    truncated: bool  # the question's end did not fit and was cut off


def tokenize(question: str) -> Tokens:
    """Encode ``question`` at the shortest of ``TOKEN_LENGTHS`` that holds it, start and end tokens included.

    Padded to 77, the ids equal ``clip.tokenize(question, truncate=True)``: what goes past 77 tokens is cut, and the end
    token kept, because CLIP reads the feature there.

    Raises QuestionError: no words, more than MAX_CHARACTERS characters, or no text at all, such as None or NaN.
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
    if _PLAIN.fullmatch(question):
        return iter(_PLAIN_WORD.findall(question.lower()))
    import ftfy  # 48 ms with regex: not for the questions that it leaves as they are
    import regex  # the standard library's re knows no \p{L}, and another white space

    text = html.unescape(html.unescape(ftfy.fix_text(question))).strip()
    text = regex.sub(r"\s+", " ", text).strip().lower()
    return (match.group() for match in regex.finditer(_WORD, text))


@lru_cache(maxsize=10_000)
def _word_ids(word: str) -> tuple[int, ...]:
    if word in _SPECIAL:
        return (_SPECIAL[word],)
    symbols, merge = _byte_symbols(), _merges().find
    ids = [symbols[byte] for byte in word.encode()]
    ids[-1] += 256  # the same byte, at the end of a word
    while len(ids) > 1:
        # a merge's id is its rank: the lowest is the best
        merged, pair = min((merge(*pair), pair) for pair in pairwise(ids))
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


class _Merges:
    """Two neighbouring symbols -> the one they become, as ``client/make_merges.py`` lays them out in the file."""

    def __init__(self, table: bytes) -> None:
        numbers = array("H", table)
        if sys.byteorder == "big":
            numbers.byteswap()
        symbols = START_OF_TEXT + 1
        count = symbols - 1 - 512
        self._starts = numbers[:symbols]
        self._seconds, self._merged = numbers[symbols : symbols + count], numbers[symbols + count :]

    def find(self, first: int, second: int) -> int:
        """Return the symbol that the two become, END_OF_TEXT where they become none."""
        end = self._starts[first + 1]
        position = bisect_left(self._seconds, second, self._starts[first], end)
        found = position < end and self._seconds[position] == second
        return self._merged[position] if found else END_OF_TEXT


@cache
def _merges() -> _Merges:
    table = pkgutil.get_data(__name__, _MERGES_FILE)  # importlib.resources takes 30 ms to import
    assert table is not None, "the loader of this package cannot read files"
    return _Merges(table)
