"""Pictures and captions for the pre-training of the demo CLIP, independent of the demo data set."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from demo.captions import FACTS, Facts, draw_caption, draw_quality_caption
from demo.photo import take_photo
from demo.questions import KINDS, draw_question_kind, phrase
from demo.scene import Pair, Scene, draw_scene
from training.artifacts import staged_file
from training.backbone import clip_tokenize
from vizwiz_client.contract.image import to_pixels

IMAGE_SIZE = 96  # pixels, of the encoder's input

# pairs of name and colour in the data set that pre-training excludes
HELD_OUT: frozenset[Pair] = frozenset(
    {
        ("mug", "blue"),
        ("umbrella", "red"),
        ("chair", "green"),
        ("sock", "yellow"),
        ("hat", "purple"),
        ("shoe", "pink"),
        ("book", "orange"),
        ("ball", "white"),
        ("bucket", "brown"),
        ("shirt", "green"),
        ("dress", "blue"),
        ("bag", "grey"),
    }
)
_SIZES = ((240, 320), (240, 320), (320, 240))  # pixels; half of the data set's sizes
_UNUSABLE_SHARE = 0.14
# rare flaws are learned from more pictures than the data set has of them
_FLAW_SHARES = {"blur": 0.5, "framing": 0.6, "dark": 0.1, "bright": 0.15, "obstruction": 0.12, "noise": 0.08}
_ROTATED_SHARE = 0.32
_SAMPLE = 20_000  # captions of each kind, and as many questions, to find the tokens in
_SHARD = 500  # pictures in a file
_UNKNOWN = -1  # a fact that a picture does not show, or that a caption does not state


def scene_of(seed: int, index: int) -> tuple[Scene, Random]:
    """Scene ``index`` of the pre-training set, and the random generator that draws its picture."""
    rng = Random(f"pretrain/{seed}/{index}")
    return draw_scene(rng, _UNUSABLE_SHARE, HELD_OUT, _FLAW_SHARES, _ROTATED_SHARE), rng


def render(seed: int, count: int, folder: Path, workers: int) -> list[Path]:
    """Draw ``count`` pictures into files of uint8 [up to 500, S, S, 3]; existing files are reused."""
    jobs = [
        (folder / f"pictures-{start:06}.npy", range(start, min(start + _SHARD, count)))
        for start in range(0, count, _SHARD)
    ]
    missing = [(path, indices) for path, indices in jobs if not path.exists()]
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    total = sum(len(indices) for _, indices in missing)
    with pool, tqdm(total=total, desc="draw", unit="picture", disable=None) as progress:
        for drawn in pool.map(partial(_render_shard, seed), missing):
            progress.update(drawn)
    return [path for path, _ in jobs]


def _render_shard(seed: int, job: tuple[Path, range]) -> int:
    path, indices = job
    pixels = []
    for index in indices:
        scene, rng = scene_of(seed, index)
        pixels.append(to_pixels(take_photo(scene, rng.choice(_SIZES), rng), IMAGE_SIZE))
    with staged_file(path) as staging, staging.open("wb") as file:
        np.save(file, np.stack(pixels))
    return len(pixels)


def encode_facts(facts: Sequence[Facts]) -> Tensor:
    """Facts as numbers, int64 [N, F] with F kinds of fact."""
    return torch.tensor(
        [[values.index(each[key]) if key in each else _UNKNOWN for key, values in FACTS.items()] for each in facts]
    )


def matches(shown: Tensor, stated: Tensor) -> Tensor:
    """Which captions are true of which pictures, bool [pictures, captions], from the facts of both, [N, F]."""
    return ((shown[:, None] == stated[None]) | (stated[None] == _UNKNOWN)).all(dim=2)


@lru_cache(maxsize=1)
def tokens_in_use() -> Tensor:
    """The CLIP tokens that captions and questions use, ascending, int64."""
    texts = []
    for index in range(_SAMPLE):
        rng = Random(f"tokens/{index}")
        scene = draw_scene(rng, _UNUSABLE_SHARE, (), _FLAW_SHARES, _ROTATED_SHARE)
        texts += [draw_caption(scene, rng)[0], draw_quality_caption(scene, rng)[0]]
        texts.append(phrase(draw_question_kind(scene, rng, misplaced_share=0), scene, rng))
    return clip_tokenize(texts).unique().long()


class Texts:
    """Draws captions and questions as token numbers among :func:`tokens_in_use`.

    Without the other 49,000 rows of the embedding, a step takes half the time.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._scenes = scenes

    def draw_captions(self, rows: Tensor, seed: str) -> tuple[Tensor, Tensor]:
        """A caption of each of the scenes ``rows`` [N]: token numbers [N, T] with T <= 77, and facts [N, F]."""
        return self._draw(draw_caption, rows, f"caption/{seed}")

    def draw_quality_captions(self, rows: Tensor, seed: str) -> tuple[Tensor, Tensor]:
        """As :meth:`draw_captions`, of how the photos were taken."""
        return self._draw(draw_quality_caption, rows, f"quality/{seed}")

    def _draw(
        self, draw: Callable[[Scene, Random], tuple[str, Facts]], rows: Tensor, seed: str
    ) -> tuple[Tensor, Tensor]:
        drawn = [draw(self._scenes[row], Random(f"{seed}/{row}")) for row in rows.tolist()]
        return compact([text for text, _ in drawn]), encode_facts([facts for _, facts in drawn])

    def draw_questions(self, rows: Tensor, seed: str) -> tuple[Tensor, Tensor]:
        """A question about each of the scenes ``rows`` [N]: token numbers [N, T], and what it asks for, int64 [N]."""
        texts, kinds = [], []
        for row in rows.tolist():
            rng = Random(f"question/{seed}/{row}")
            kind = draw_question_kind(self._scenes[row], rng, misplaced_share=0)
            texts.append(phrase(kind, self._scenes[row], rng))
            kinds.append(KINDS.index(kind))
        return compact(texts), torch.tensor(kinds)


def compact(texts: list[str]) -> Tensor:
    """Texts as numbers among :func:`tokens_in_use`, int64 [N, longest].

    The numbers keep the order of CLIP's tokens: CLIP finds the end of a text by its highest number.

    Raises:
        ValueError: a text has a token that is not in use.
    """
    tokens = clip_tokenize(texts).long()
    tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())].contiguous()
    numbers = torch.searchsorted(tokens_in_use(), tokens).clamp(max=len(tokens_in_use()) - 1)
    if not torch.equal(tokens_in_use()[numbers], tokens):
        row = int((tokens_in_use()[numbers] != tokens).any(dim=1).nonzero()[0])
        raise ValueError(f"{texts[row]!r} has a token that no drawn caption or question has")
    return numbers
