from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.backbone import FrozenClip, clip_tokenize
from training.dataset import DatasetError, Record, Split, read_split
from training.feature_cache import photo_digests
from training.features import encode_split
from vizwiz_client.contract.image import load_photo, to_pixels


@pytest.fixture
def split(some_photos: Path, tmp_path: Path) -> Split:
    """The first photos, copied so that a test may change them."""
    original = read_split(some_photos, "val", limit=6)
    for record in original.records:
        shutil.copy(original.photos / record.image, tmp_path / record.image)
    return Split("val", original.records, tmp_path, original.digest)


@pytest.mark.material
def test_features_are_what_clip_itself_gives(tiny_clip: FrozenClip, split: Split, tmp_path: Path) -> None:
    features = encode_split(tiny_clip, split, tmp_path / "cache")
    with torch.inference_mode():
        for row, (path, record) in enumerate(zip(split.photo_paths(), split.records, strict=True)):
            with Image.open(path) as photo:
                if photo.getexif().get(0x0112, 1) != 1:
                    continue  # CLIP's own preprocess ignores the camera's orientation
                pixels = tiny_clip.reference_preprocess()(photo.convert("RGB"))[None]
            image = tiny_clip.model.encode_image(pixels).numpy()[0]
            text = tiny_clip.model.encode_text(clip_tokenize([record.question])).numpy()[0]
            np.testing.assert_allclose(features.images[row], image, atol=1e-5 * np.abs(image).max())
            np.testing.assert_allclose(features.texts[row], text, atol=1e-5 * np.abs(text).max())


def test_what_was_encoded_is_read_from_the_cache(tiny_vit: FrozenClip, split: Split, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = encode_split(tiny_vit, split, cache)
    shards = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert len(shards) == 4  # photos and questions: a shard and the concatenated file of each
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
    assert not np.allclose(texts[0], texts[2])
    rows = sorted(np.load(path).shape[0] for path in (tmp_path / "cache").glob("*/*.npy"))
    assert rows == [2, 3]  # questions, photos


def test_unreadable_photos_are_all_named_and_none_is_cached(tiny_vit: FrozenClip, split: Split, tmp_path: Path) -> None:
    broken = [split.photo_paths()[1], split.photo_paths()[4]]
    for path in broken:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DatasetError) as error:
        encode_split(tiny_vit, split, tmp_path / "cache")
    assert all(path.name in str(error.value) for path in broken)
    assert list((tmp_path / "cache").rglob("*.npy")) == []


@pytest.mark.material
def test_photos_are_rotated_upright_and_before_the_crop(tiny_vit: FrozenClip, split: Split, tmp_path: Path) -> None:
    features = encode_split(tiny_vit, split, tmp_path / "cache", rotations=4)
    assert [rotated.shape for rotated in features.rotated] == [features.images.shape] * 3
    for row, path in enumerate(split.photo_paths()):
        upright = load_photo(path)
        for degrees, rotated in zip((90, 180, 270), features.rotated, strict=True):
            pixels = to_pixels(upright.rotate(degrees, expand=True), tiny_vit.image_size)
            expected = tiny_vit.encode_images(pixels[None])[0]
            np.testing.assert_allclose(rotated[row], expected, atol=1e-5 * np.abs(expected).max())
            assert not np.allclose(rotated[row], features.images[row], atol=1e-3)


@pytest.mark.material
def test_rotations_requested_later_keep_the_upright_photos(tiny_vit: FrozenClip, split: Split, tmp_path: Path) -> None:
    first = encode_split(tiny_vit, split, tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    second = encode_split(tiny_vit, split, tmp_path / "cache", rotations=2)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    np.testing.assert_array_equal(first.images, second.images)
    at_once = encode_split(tiny_vit, split, tmp_path / "other", rotations=2)
    np.testing.assert_array_equal(at_once.rotated[0], second.rotated[0])
    np.testing.assert_array_equal(at_once.images, second.images)


def test_features_are_mapped_and_writing_to_them_never_reaches_the_file(
    tiny_vit: FrozenClip, split: Split, tmp_path: Path
) -> None:
    features = encode_split(tiny_vit, split, tmp_path / "cache")
    assert isinstance(features.images, np.memmap)
    assert isinstance(features.texts, np.memmap)
    kept = features.images.copy()
    torch.from_numpy(features.images).zero_()  # PyTorch warns, which fails a test, when it is given a read-only array
    np.testing.assert_array_equal(encode_split(tiny_vit, split, tmp_path / "cache").images, kept)


def test_a_file_that_was_cut_short_is_made_again(tiny_vit: FrozenClip, split: Split, tmp_path: Path) -> None:
    whole = encode_split(tiny_vit, split, tmp_path / "cache")
    images, texts = whole.images.copy(), whole.texts.copy()
    for path in (tmp_path / "cache").rglob("*.npy"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])
    again = encode_split(tiny_vit, split, tmp_path / "cache")
    np.testing.assert_array_equal(again.images, images)
    np.testing.assert_array_equal(again.texts, texts)


@pytest.mark.parametrize("question", ["", " \t\n", "\u00a0", "&nbsp;", " &amp;nbsp; "])
def test_a_question_without_words_is_what_clip_makes_of_it(
    question: str, tiny_vit: FrozenClip, split: Split, tmp_path: Path
) -> None:
    silent = dataclasses.replace(split, records=(Record(split.records[0].image, question),))
    text = encode_split(tiny_vit, silent, tmp_path / "cache").texts[0]
    with torch.inference_mode():
        expected = tiny_vit.model.encode_text(clip_tokenize([question])).numpy()[0]
    np.testing.assert_allclose(text, expected, atol=1e-5 * np.abs(expected).max())


def test_a_question_that_cannot_be_read_is_named(tiny_vit: FrozenClip, split: Split, tmp_path: Path) -> None:
    endless = dataclasses.replace(split, records=(Record(split.records[0].image, "what " * 2000),))
    with pytest.raises(DatasetError, match=r"1 cannot be read:\n  .what what .* 10,000 characters"):
        encode_split(tiny_vit, endless, tmp_path / "cache")


def test_the_readable_shards_are_kept_when_a_photo_is_damaged(
    tiny_vit: FrozenClip, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.features.SHARD", 2)
    monkeypatch.setattr("training.feature_cache.SHARD", 2)
    broken = split.photo_paths()[3]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:500])
    with pytest.raises(DatasetError, match=f"val photos: 1 cannot be read:\n  {broken}"):
        encode_split(tiny_vit, split, tmp_path / "cache")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert len(kept) == 2
    broken.write_bytes(whole)
    encode_split(tiny_vit, split, tmp_path / "cache")
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_digests_are_cached_until_a_photo_changes(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, cache = split.photo_paths()[0], tmp_path / "cache"
    photo_digests([photo], cache)
    assert not cache.exists()  # the photo is seconds old: it may still change under the same times
    monkeypatch.setattr("training.feature_cache._SETTLED_AFTER_S", 0)
    first, errors = photo_digests([photo], cache)
    assert errors == []
    (index,) = (cache / "photos").iterdir()
    index.write_text(index.read_text().replace(first[photo], "cached"))
    assert photo_digests([photo], cache)[0] == {photo: "cached"}
    photo.write_bytes(photo.read_bytes())  # other times, the same bytes
    assert photo_digests([photo], cache)[0] == first


@pytest.mark.parametrize("content", [b"", b'{"a.jpg": [3, ', b"\xff\xff"])
def test_a_damaged_index_of_photos_is_made_again(
    split: Split, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.feature_cache._SETTLED_AFTER_S", 0)
    expected = photo_digests(split.photo_paths(), tmp_path / "cache")
    (index,) = (tmp_path / "cache" / "photos").iterdir()
    whole = index.read_bytes()
    index.write_bytes(content)
    assert photo_digests(split.photo_paths(), tmp_path / "cache") == expected
    assert index.read_bytes() == whole


def test_missing_photos_and_pipes_are_all_reported(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.jpg")
    digests, errors = photo_digests([tmp_path / "missing.jpg", pipe], tmp_path / "cache")
    assert digests == {}
    assert errors[0] == f"{tmp_path / 'missing.jpg'}: cannot be read (No such file or directory)"
    assert errors[1].startswith(f"{pipe}: a pipe")
