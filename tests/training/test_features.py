from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.clip_models import FrozenClip, clip_preprocess, clip_tokenize
from training.data import DatasetError, Split, read_split
from training.features import encode_split


@pytest.fixture
def split(real_photos: Path, tmp_path: Path) -> Split:
    """The first real photos, copied so that a test may change them."""
    original = read_split(real_photos, "val", limit=6)
    for record in original.records:
        shutil.copy(original.photos / record.image, tmp_path / record.image)
    return Split("val", original.records, tmp_path, original.digest)


def test_features_are_what_clip_itself_gives(tiny_clip: FrozenClip, split: Split, tmp_path: Path) -> None:
    features = encode_split(tiny_clip, split, tmp_path / "cache")
    with torch.inference_mode():
        for row, (path, record) in enumerate(zip(split.photo_paths(), split.records, strict=True)):
            with Image.open(path) as photo:
                if photo.getexif().get(0x0112, 1) != 1:
                    continue  # CLIP's own preprocess ignores the camera's orientation
                pixels = clip_preprocess(tiny_clip.side)(photo.convert("RGB"))[None]
            image = tiny_clip.model.encode_image(pixels).numpy()[0]
            text = tiny_clip.model.encode_text(clip_tokenize([record.question])).numpy()[0]
            np.testing.assert_allclose(features.images[row], image, atol=1e-5 * np.abs(image).max())
            np.testing.assert_allclose(features.texts[row], text, atol=1e-5 * np.abs(text).max())


def test_what_was_encoded_is_read_from_the_cache(tiny_vit: FrozenClip, split: Split, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = encode_split(tiny_vit, split, cache)
    shards = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert len(shards) == 2  # photos, questions
    second = encode_split(tiny_vit, split, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == shards
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.texts, second.texts)


def test_a_changed_photo_is_encoded_again(tiny_vit: FrozenClip, split: Split, tmp_path: Path) -> None:
    first = encode_split(tiny_vit, split, tmp_path / "cache")
    Image.new("RGB", (64, 48), "red").save(split.photo_paths()[0])
    second = encode_split(tiny_vit, split, tmp_path / "cache")
    assert not np.allclose(first.images[0], second.images[0])
    np.testing.assert_allclose(first.images[1:], second.images[1:], rtol=1e-4, atol=1e-5)


def test_equal_questions_share_a_row(tiny_vit: FrozenClip, split: Split, tmp_path: Path) -> None:
    same = Split("val", (split.records[0], split.records[0], split.records[1]), split.photos, "")
    texts = encode_split(tiny_vit, same, tmp_path / "cache").texts
    np.testing.assert_array_equal(texts[0], texts[1])
    assert np.load(max((tmp_path / "cache").rglob("*.npy"), key=lambda path: path.stat().st_mtime_ns)).shape[0] == 2


def test_unreadable_photos_are_all_named_and_nothing_is_kept_of_them(
    tiny_vit: FrozenClip, split: Split, tmp_path: Path
) -> None:
    broken = [split.photo_paths()[1], split.photo_paths()[4]]
    for path in broken:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DatasetError) as error:
        encode_split(tiny_vit, split, tmp_path / "cache")
    assert all(path.name in str(error.value) for path in broken)
    assert list((tmp_path / "cache").rglob("*.npy")) == []
