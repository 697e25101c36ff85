"""A question becomes the ids that ``clip.tokenize`` gives, at the shortest length that holds them, without torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vizwiz_client.contract import tensors, tokenizer
from vizwiz_client.contract.errors import QuestionError
from vizwiz_client.contract.tokenizer import END_OF_TEXT, START_OF_TEXT, pad, tokenize

ROOT = Path(__file__).parents[2]
MERGES_DIGEST = "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"  # of OpenAI's text
TABLE_DIGEST = "edc733dfcd1e172ec0eac504852e22013a806d98359f0f4769ed9bbf1671f7e3"


def clip_ids(question: str, truncate: bool = False) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clip imports pkg_resources
        import clip
    return clip.tokenize(question, truncate=truncate)[0].numpy()


def assert_equals_clip(question: str) -> None:
    expected = clip_ids(question, truncate=True)
    if np.count_nonzero(expected) == 2:  # start and end alone: CLIP encodes nothing, here it is refused
        with pytest.raises(QuestionError):
            tokenize(question)
        return
    np.testing.assert_array_equal(pad(tokenize(question).ids, 77), expected)


class TestEqualsClip:
    def test_on_all_real_questions(self, real_annotations: Callable[[str], Path]) -> None:
        records = json.loads(real_annotations("test").read_text(encoding="utf-8"))
        questions = [record["question"] for record in records]
        assert len(questions) == 8_000
        for question in questions:
            ours = tokenize(question)
            np.testing.assert_array_equal(pad(ours.ids, 77), clip_ids(question), err_msg=question)
            assert not ours.truncated

    @settings(max_examples=400, deadline=None)
    @given(st.text(max_size=120))
    @example("What is this?")
    @example("  What\tcolour \n is\u00a0this \u3000 shirt?  ")
    @example("it's they're I've I'll I'd don't I'm 'S 'RE")
    @example("ISN’T “this” a ‘label’?")
    @example("&amp;amp; &lt;b&gt; &quot;x&quot; &nbsp;y &#39; &hearts")
    @example("<b> &amp;lt; &amp;amp; x")
    @example("ﬁsh ﬂour oﬃce Ǆ ß ẞ İstanbul ſtop 'ſ")
    @example("naïve cafe\u0301 日本語 한국어 العربية हिन्दी 🍌🍎 👩‍🦯")
    @example("12,345.67 € №5 ²³ ½ Ⅷ")
    @example("mojibake: schÃ¶n donâ€™t")
    @example("<|startoftext|> x <|ENDOFTEXT|><|endoftext|>y <|ſtartoftext|>")
    @example("\x00\x1c\x1d\x85\u200b\ufeff \ud800 \udcff a")
    @example("________ ---- ?!?! ...")
    def test_on_generated_text(self, question: str) -> None:
        assert_equals_clip(question)

    @settings(max_examples=400, deadline=None)
    @given(st.text(st.characters(max_codepoint=0x7F), max_size=60))
    @example("what\r\nis\rthis\n\n?")
    @example("\x1b[31mred\x1b[0m what \x1b is \x1b[2K this")
    @example("a\x00b\x0bc\x0cd\x1ce\x1ff\x7fg")
    @example("AT&T &amp; Q&A &lt;|endoftext|&gt; &#x3c; &amp;#39; &nosuch; &")
    @example("It'S 'RE don'T 'x' ''s '' _a_1_ a1b2 <|startoftext|>a<|ENDOFTEXT|>'")
    @example('~!@#$%^*()_+-=[]{}|;:,./<>?`"\\')
    def test_on_ascii(self, question: str) -> None:
        """Most of it never sees ftfy here, and always does in CLIP."""
        assert_equals_clip(question)

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(
            st.sampled_from("this what's &amp; &gt; ’ “ ﬁ 12 ... ?! don’t \u00a0 naïve 🍌 x".split(" ")), max_size=120
        )
    )
    def test_on_generated_sentences(self, words: list[str]) -> None:
        assert_equals_clip(" ".join(words))

    @pytest.mark.parametrize("count", [1, 6, 7, 14, 15, 30, 31, 74, 75, 76, 77, 500])
    def test_around_every_length(self, count: int) -> None:
        ours = tokenize("banana " * count)
        np.testing.assert_array_equal(pad(ours.ids, 77), clip_ids("banana " * count, truncate=True))
        assert len(ours.ids) == next(length for length in tensors.TOKEN_LENGTHS if length >= min(count + 2, 77))
        assert ours.truncated == (count > 75)

    def test_a_cut_inside_a_word(self) -> None:
        question = "banana " * 74 + "pneumonoultramicroscopicsilicovolcanoconiosis"
        assert_equals_clip(question)
        assert tokenize(question).truncated


class TestTokens:
    def test_shape_type_start_end_and_padding(self) -> None:
        ids = tokenize("What is this?").ids
        assert ids.dtype == tensors.TOKENS.dtype
        assert ids.tolist() == [START_OF_TEXT, 768, 533, 589, 286, END_OF_TEXT, 0, 0]

    def test_pad(self) -> None:
        assert pad(np.array([1, 2], dtype=np.int32), 4).tolist() == [1, 2, 0, 0]
        assert pad(np.array([1, 2], dtype=np.int32), 2).dtype == np.int32
        with pytest.raises(ValueError, match="got 3 token ids to pad to 2; expected no more than 2"):
            pad(np.array([1, 2, 3], dtype=np.int32), 2)

    @pytest.mark.parametrize("question", ["", "   ", "\n\t", "&nbsp;", "\x00"])
    def test_a_question_without_words_is_refused(self, question: str) -> None:
        with pytest.raises(QuestionError, match="expected words; ask something, such as 'what is this"):
            tokenize(question)

    def test_an_endless_question_is_refused(self) -> None:
        assert tokenize("a" * tokenizer.MAX_CHARACTERS).truncated
        with pytest.raises(
            QuestionError, match=r"the question has 5,001 characters, expected at most 5,000; .*ask it shorter"
        ):
            tokenize("a" * (tokenizer.MAX_CHARACTERS + 1))

    def test_long_words_are_not_cached(self) -> None:
        tokenizer._word_ids.cache_clear()
        assert_equals_clip("a photo of " + "abcdefghijklmnopqrstuvwxyz" * 40)
        assert tokenizer._word_ids.cache_info().currsize == 3

    def test_threads_agree(self) -> None:
        tokenizer._merges.cache_clear()
        tokenizer._word_ids.cache_clear()
        results: list[list[int]] = []
        threads = [
            threading.Thread(target=lambda: results.append(tokenize("is this a banana?").ids.tolist()))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [tokenize("is this a banana?").ids.tolist()] * 8


@pytest.fixture(scope="module")
def make_merges() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_merges", ROOT / "client" / "make_merges.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("question", [None, float("nan"), 7, b"what is this?", ["what is this?"]])
def test_what_is_no_text_is_refused(question: object) -> None:
    with pytest.raises(QuestionError, match=rf"type {type(question).__name__}, expected text; ask something"):
        tokenize(question)  # type: ignore[arg-type]


class TestMergesTable:
    def test_digest(self) -> None:
        table = resources.files("vizwiz_client.contract").joinpath("clip_merges.bin").read_bytes()
        assert hashlib.sha256(table).hexdigest() == TABLE_DIGEST

    def test_it_is_what_the_script_makes_from_clip(self, make_merges: ModuleType) -> None:
        assert hashlib.sha256(make_merges.used_merges()).hexdigest() == MERGES_DIGEST
        assert hashlib.sha256(make_merges.table()).hexdigest() == TABLE_DIGEST

    def test_openais_licence_is_beside_it(self, make_merges: ModuleType) -> None:
        licence = (make_merges.CONTRACT / "LICENSE.CLIP").read_bytes()
        assert licence == make_merges.original("LICENSE")
        assert b"Copyright (c) 2021 OpenAI" in licence


def test_tokenizing_needs_no_heavy_package_and_plain_english_no_ftfy() -> None:
    program = """
import sys
from vizwiz_client.contract import image, tensors, tokenizer
tokenizer.tokenize("What's this, 1st?\\r\\n")
assert not {"ftfy", "regex"} & set(sys.modules), "imported for a question that they leave as it is"
tokenizer.tokenize("what’s this?")
assert {"ftfy", "regex"} <= set(sys.modules), "this test cannot fail"
print(*sorted({"torch", "torchvision", "clip", "onnx", "onnxruntime", "tritonclient", "grpc"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
