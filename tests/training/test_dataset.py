from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import annotation, write_split
from training.dataset import (
    DEMO_MANIFEST,
    DatasetError,
    Record,
    Split,
    fold_rows,
    holdout_rows,
    read_annotations,
    read_split,
    select,
)


def test_a_record_is_read_whole(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [annotation(0), annotation(1, answerable=0, answer_type="unanswerable")])
    split = read_split(tmp_path, "train")
    first, second = split.records
    assert first.answers == ("mug",) * 8 + ("cup",) * 2
    assert first.confidences == ("yes",) * 8 + ("maybe",) * 2
    assert (first.answer_type, first.answerable) == ("other", True)
    assert second.answerable is False
    assert split.photo_paths() == [tmp_path / "train" / f"VizWiz_train_0000000{n}.jpg" for n in (0, 1)]


def test_unknown_confidence_stays_unknown(tmp_path: Path) -> None:
    answers = [{"answer": "mug", "answer_confidence": None}] * 10
    write_split(tmp_path, "train", [annotation(0, answers=answers)])
    assert read_split(tmp_path, "train").records[0].confidences == (None,) * 10


def test_the_test_split_has_no_answers(tmp_path: Path) -> None:
    write_split(tmp_path, "test", [{"image": "VizWiz_test_00000000.jpg", "question": "What is this?"}])
    assert read_split(tmp_path, "test", labelled=False).records[0].answers == ()


def test_every_problem_is_reported_with_its_record(tmp_path: Path) -> None:
    nine = [{"answer": "mug", "answer_confidence": "yes"}] * 9
    records = [
        annotation(0),
        annotation(1, question=None),
        annotation(2, answers=nine),
        annotation(3, answer_type="colour"),
        annotation(4, answerable=2),
        annotation(5, image="../../secret.jpg"),
        annotation(6, answers=[*nine, {"answer": "mug", "answer_confidence": "certain"}]),
        annotation(7, answers=[*nine, {"text": "mug"}]),
        annotation(0),
        annotation(9, image="..\\secret.jpg", answer_type=["other"]),
        annotation(10, question="\ud800 half a character"),
        annotation(11, image="caf\udce9.jpg"),  # as Python lists a file name that is not UTF-8
    ]
    write_split(tmp_path, "train", records)
    with pytest.raises(DatasetError) as error:
        read_split(tmp_path, "train")
    assert str(error.value).splitlines() == [
        f"{tmp_path}/Annotations/train.json: 12 error(s) in 12 records:",
        "  record 1: 'question' must be text, got None",
        "  record 2: 'answers' must be a list of 10, got 9",
        "  record 3: 'answer_type' must be one of other, unanswerable, yes/no, number, got 'colour'",
        "  record 4: 'answerable' must be 0 or 1, got 2",
        "  record 5: 'image' must be a bare file name, got '../../secret.jpg'",
        "  record 6: 'answer_confidence' must be yes, maybe, no or null, got 'certain'",
        "  record 7: each of 'answers' must be an object with the text 'answer'",
        "  record 8: image 'VizWiz_train_00000000.jpg' is also the image of record 0",
        "  record 9: 'image' must be a bare file name, got '..\\\\secret.jpg'",
        "  record 9: 'answer_type' must be one of other, unanswerable, yes/no, number, got ['other']",
        "  record 10: 'question' must be text, got '\\ud800 half a character'",
        "  record 11: 'image' must be text, got 'caf\\udce9.jpg'",
    ]


def test_a_record_that_is_no_object_is_reported(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "train.json").write_text('["mug"]')
    with pytest.raises(DatasetError, match="record 0: expected an object, got str"):
        read_split(tmp_path, "train")


def test_missing_photos_are_named(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [annotation(0), annotation(1)])
    (tmp_path / "train" / "VizWiz_train_00000001.jpg").unlink()
    with pytest.raises(DatasetError, match=r"record 1: photo .*VizWiz_train_00000001\.jpg does not exist"):
        read_split(tmp_path, "train")


def test_unreadable_photos_are_named_together_with_the_missing_ones(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [annotation(number) for number in range(5)])
    photos = sorted((tmp_path / "train").iterdir())
    photos[0].write_bytes(b"")
    photos[1].write_text("hello")
    photos[2].unlink()
    photos[3].unlink()
    photos[3].mkdir()
    with pytest.raises(DatasetError) as error:
        read_split(tmp_path, "train")
    a_file = "a JPEG, PNG, WEBP, GIF or BMP file"
    assert str(error.value).splitlines() == [
        f"{tmp_path}/Annotations/train.json: 4 error(s) in 5 records:",
        f"  record 0: photo {photos[0]}: not a picture: got no data, expected {a_file}",
        f"  record 1: photo {photos[1]}: not a picture: got data that starts with b'hello', expected {a_file}",
        f"  record 2: photo {photos[2]} does not exist",
        f"  record 3: photo {photos[3]}: cannot be read (Is a directory); expected the path of {a_file}",
    ]


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [annotation(0, image="a\x1b[2J\n  record 7: all is well.jpg")])
    (photo,) = (tmp_path / "train").iterdir()
    for damage in (lambda: photo.write_bytes(b""), photo.unlink):
        damage()
        with pytest.raises(DatasetError) as error:
            read_split(tmp_path, "train")
        _, problem = str(error.value).split("\n")
        assert r"a\x1b[2J\n  record 7: all is well.jpg" in problem


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_might_never_end_is_not_read(tmp_path: Path, kind: str) -> None:
    write_split(tmp_path, "train", [annotation(0), annotation(1)])
    (photo := tmp_path / "train" / "VizWiz_train_00000001.jpg").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        os.mkfifo(photo) if kind == "pipe" else listener.bind(str(photo))
        with pytest.raises(DatasetError, match=r"1 error.*\n  record 1: photo .*1\.jpg: a pipe, socket or device"):
            read_split(tmp_path, "train")


def test_a_long_list_of_problems_ends_with_their_number(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [annotation(number, answerable=7) for number in range(25)])
    with pytest.raises(DatasetError, match=r"25 error\(s\) in 25 records:(?s:.*)\n  and 5 more$"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "expected a list of records, got dict"),
        ("[]", "of length 0"),
        ("null", "got NoneType"),
    ],
)
def test_a_file_that_is_no_list_of_records(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "val.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_split(tmp_path, "val")


def test_a_folder_without_annotations_is_refused_with_the_expected_layout(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"does not exist: a VizWiz folder has Annotations/train\.json"):
        read_split(tmp_path, "train")


def test_only_vizwiz_is_called_so(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [annotation(0), annotation(1)])
    assert read_split(tmp_path, "train").is_vizwiz
    (tmp_path / DEMO_MANIFEST).touch()
    assert not read_split(tmp_path, "train").is_vizwiz
    (tmp_path / DEMO_MANIFEST).unlink()
    write_split(tmp_path, "train", [annotation(0), annotation(1, image="kitchen.jpg")])
    assert not read_split(tmp_path, "train").is_vizwiz


def test_the_real_photos_are_read(real_photos: Path) -> None:
    split = read_split(real_photos, "val")
    assert len(split.records) == 50
    assert all(len(record.answers) == 10 for record in split.records)


@pytest.mark.parametrize(
    ("name", "records", "unknown_confidences", "unanswerable"),
    [
        ("train_reconstructed", 20_523, 201_230, 5_821),
        ("val_reconstructed", 4_319, 10_670, 1_385),
        ("val_2018", 3_173, 0, 922),
    ],
)
def test_real_annotations_are_read_whole(
    real_annotations: Callable[[str], Path], name: str, records: int, unknown_confidences: int, unanswerable: int
) -> None:
    read = read_annotations(real_annotations(name))
    assert len(read) == records
    assert sum(confidence is None for record in read for confidence in record.confidences) == unknown_confidences
    assert sum(not record.answerable for record in read) == unanswerable


def test_real_test_questions_are_read_and_have_no_answers(real_annotations: Callable[[str], Path]) -> None:
    path = real_annotations("test")
    read = read_annotations(path, labelled=False)
    assert len(read) == 8_000
    assert not any(record.answers for record in read)
    with pytest.raises(DatasetError, match=r"24000 error\(s\) in 8000 records"):
        read_annotations(path)


def make_split(count: int) -> Split:
    records = tuple(
        Record(f"{number:04}.jpg", "?", ("mug",) * 10, (None,) * 10, "other", True) for number in range(count)
    )
    return Split("train", records, Path("train"), "digest")


def images(split: Split) -> set[str]:
    return {record.image for record in split.records}


def test_a_holdout_divides_the_records() -> None:
    whole = make_split(1000)
    kept, held_out = holdout_rows(whole, 0.1, seed=3)
    assert (len(kept), len(held_out)) == (900, 100)
    assert sorted([*kept, *held_out]) == list(range(1000))


def test_a_holdout_depends_on_names_and_seed_not_on_the_order() -> None:
    whole = make_split(1000)
    turned = Split(whole.name, whole.records[::-1], whole.photos, whole.digest)
    expected = images(select(whole, holdout_rows(whole, 0.1, seed=3)[1]))
    assert images(select(turned, holdout_rows(turned, 0.1, seed=3)[1])) == expected
    assert images(select(whole, holdout_rows(whole, 0.1, seed=4)[1])) != expected


def test_two_questions_about_one_photo_are_in_one_part() -> None:
    single = make_split(50)
    double = Split("train", single.records * 2, single.photos, "digest")
    kept, held_out = (select(double, rows) for rows in holdout_rows(double, 0.3, seed=0))
    assert len(held_out.records) == 30
    assert not images(kept) & images(held_out)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(DatasetError, match="--holdout must be above 0 and below 1"):
        holdout_rows(make_split(10), fraction, seed=0)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"--holdout 0\.01 of the 10 photos of train leaves one part empty"):
        holdout_rows(make_split(10), 0.01, seed=0)


def test_folds_divide_the_rows_evenly() -> None:
    records = make_split(103).records
    folds = fold_rows(records, 10, seed=0)
    assert sorted(len(rows) for rows in folds) == [10] * 7 + [11] * 3
    assert sorted(np.concatenate(folds)) == list(range(103))
    assert [list(rows) for rows in fold_rows(records, 10, seed=1)] != [list(rows) for rows in folds]
    with pytest.raises(DatasetError, match="3 photos cannot be divided into 10 folds: give fewer --folds"):
        fold_rows(records[:3], 10, seed=0)
