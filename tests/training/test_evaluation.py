from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from training.contact_sheet import best_and_worst, thumbnail
from training.data import Record, Split
from training.evaluation import Predictions, confusion_of_types, predict
from training.features import SplitFeatures
from training.head import GatedHead
from training.predictor import ClipEnsemble, Predictor


def features(records: int, width: int, seed: int) -> SplitFeatures:
    random = np.random.default_rng(seed)
    images, texts = random.standard_normal((2, records, width)).astype(np.float32)
    images.setflags(write=False)  # as a map of a file is
    return SplitFeatures(images, texts)


def ensemble(widths: list[int]) -> ClipEnsemble:
    torch.manual_seed(0)
    members = [Predictor([GatedHead(width, 5, 4, 16) for _ in range(2)]) for width in widths]
    for member in members:
        member.calibration.line.copy_(torch.tensor([2.0, 0.5]))
    return ClipEnsemble(members).eval()


def test_batches_predict_what_the_whole_predicts() -> None:
    """2,100 records are three batches, the last one short; two CLIPs of different width."""
    both = [features(2100, 6, 0), features(2100, 8, 1)]
    model = ensemble([6, 8])
    predictions = predict(model, both, list("abcde"), torch.device("cpu"))
    with torch.inference_mode():
        whole = model([(torch.from_numpy(each.texts), torch.from_numpy(each.images.copy())) for each in both])
    assert predictions.answers == ["abcde"[index] for index in whole.answer.argmax(dim=1).tolist()]
    assert len(set(predictions.answers)) > 1
    np.testing.assert_allclose(predictions.confidence, whole.answer.max(dim=1).values.numpy(), rtol=1e-5)
    np.testing.assert_allclose(predictions.types, whole.answer_type.numpy(), rtol=1e-5)
    np.testing.assert_allclose(predictions.answerable, whole.answerable.numpy(), rtol=1e-5)


def test_confusion_by_hand() -> None:
    counts = confusion_of_types([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 2, 2], 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Six questions about a photo that lies on its side."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "a maker of telephones"
    Image.new("RGB", (800, 400), "teal").save(tmp_path / "photo.jpg", exif=exif, comment="taken at home")
    given = ("mug",) * 8 + ("cup",) * 2
    return Split("val", (Record("photo.jpg", "what?", given, (None,) * 10, "other", True),) * 6, tmp_path, "digest")


def test_a_thumbnail_is_small_upright_and_says_nothing_of_its_maker(split: Split, tmp_path: Path) -> None:
    jpeg = thumbnail(split.photos / "photo.jpg")
    (tmp_path / "small.jpg").write_bytes(jpeg)
    with Image.open(tmp_path / "small.jpg") as small:
        assert small.size == (120, 240)
        assert not small.getexif()
    assert b"telephones" not in jpeg
    assert b"home" not in jpeg


def test_the_sheet_shows_the_surest_of_each_answer(split: Split) -> None:
    predictions = Predictions(
        ["mug", "mug", "blue", "red", "red", "cup"],
        np.array([0.3, 0.9, 0.5, 0.8, 0.7, 0.99], np.float32),
        np.zeros((6, 4), np.float32),
        np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.9], np.float32),
    )
    accuracy = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.6])  # "cup" is half right: neither best nor worst
    best, worst = best_and_worst(split, predictions, accuracy)
    assert [(card.answer, round(card.confidence, 2)) for card in best] == [("mug", 0.9), ("mug", 0.3)]
    assert [(card.answer, round(card.confidence, 2)) for card in worst] == [("red", 0.8), ("blue", 0.5), ("red", 0.7)]
    assert worst[2].answerable == pytest.approx(0.6)
    assert best[0].given == "mug × 8, cup × 2"
    assert best[0].picture.startswith("data:image/jpeg;base64,/9j/")
    assert [card.answer for card in best_and_worst(split, predictions, accuracy, size=1)[1]] == ["red"]
