"""Read and validate a VizWiz folder: ``Annotations/{split}.json`` and the photos in ``{split}/``.

A split is validated before anything is computed from it, and all its errors are reported at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.artifacts import digest_of, file_digest
from vizwiz_client.contract.errors import ImageError, escape_controls
from vizwiz_client.contract.image import check_header

ANSWERS_PER_QUESTION = 10
ANSWER_TYPES = ("other", "unanswerable", "yes/no", "number")  # the official four
CONFIDENCES = ("yes", "maybe", "no", None)  # None: unknown, in rebuilt annotations
_VIZWIZ_PHOTO = re.compile(r"VizWiz_(train|val|test)_\d{8}\.jpg")
HOLDOUT = "holdout"  # name of the part of train that a fit holds out
DEMO_MANIFEST = "demo.json"  # in the folder of the demo data
_MAX_ERRORS = 20  # shown
_REMEDY = (
    "a VizWiz folder has Annotations/train.json, Annotations/val.json and the photos in train/ and val/; "
    "`python -m training.download` makes one (docs/data.md)"
)
_HEADER_THREADS = 8  # read photo headers: opening a file of a network drive is mostly waiting


Rows = npt.NDArray[np.int64]  # rows of a split


class DatasetError(Exception):
    """An invalid VizWiz folder; control characters in the message are escaped."""

    def __init__(self, headline: str, errors: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join(escape_controls(line) for line in (headline, *errors)))


@dataclass(frozen=True)
class Record:
    """A question about a photo; labels are missing in the official test split."""

    image: str
    question: str
    answers: tuple[str, ...] = ()  # of the ten annotators
    confidences: tuple[str | None, ...] = ()
    answer_type: str | None = None
    answerable: bool | None = None
    votes: tuple[int, ...] | None = None  # on the issues of the photo, in the order of training.quality.ISSUES


@dataclass(frozen=True)
class Split:
    """The records of an annotation file, in its order, and the folder of their photos."""

    name: str
    records: tuple[Record, ...]
    photos: Path
    digest: str  # SHA-256 of the annotation file
    votes_digest: str | None = None  # SHA-256 of the file of votes on photo quality

    @property
    def folder(self) -> Path:
        """The VizWiz folder."""
        return self.photos.parent

    @property
    def is_vizwiz(self) -> bool:
        """Whether the photos have VizWiz's names and are not the demo's, which have them too."""
        official_names = all(_VIZWIZ_PHOTO.fullmatch(record.image) for record in self.records)
        return official_names and not self.is_demo

    @property
    def is_demo(self) -> bool:
        """Whether the photos are the demo's drawn pictures."""
        return (self.folder / DEMO_MANIFEST).exists()

    def photo_paths(self) -> list[Path]:
        """The path of each record's photo."""
        return [self.photos / record.image for record in self.records]


def read_split(folder: Path, name: str, *, labelled: bool = True, limit: int | None = None) -> Split:
    """Read and validate ``folder/Annotations/{name}.json`` and the header of every photo it names.

    Damaged pixels are found later, when features are encoded.

    Args:
        folder: VizWiz folder.
        name: train, val or test.
        labelled: whether to require labels; if not, only image and question are read.
        limit: read only the first records.

    Raises:
        DatasetError: something is missing or malformed; the message lists all errors with their record numbers.
    """
    path = folder / "Annotations" / f"{name}.json"
    raw = read_list(path, _REMEDY)[:limit]
    photos = folder / name
    errors = list(_record_errors(raw, labelled)) or list(_photo_errors(raw, photos))
    _refuse_records(path, errors, len(raw))
    return Split(name, tuple(_record(entry, labelled) for entry in raw), photos, file_digest(path))


def read_annotations(path: Path, *, labelled: bool = True, limit: int | None = None) -> tuple[Record, ...]:
    """Read and validate an annotation file, without its photos; see :func:`read_split`.

    Raises:
        DatasetError: the file is missing or malformed; the message lists all errors with their record numbers.
    """
    raw = read_list(path, _REMEDY)[:limit]
    _refuse_records(path, list(_record_errors(raw, labelled)), len(raw))
    return tuple(_record(entry, labelled) for entry in raw)


def select(split: Split, rows: Rows) -> Split:
    """The split of these rows, in their order."""
    return replace(split, records=tuple(split.records[row] for row in rows))


def holdout_rows(split: Split, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Divide ``split`` into rows to fit on and rows to hold out as a labelled test.

    A record's part depends on its photo's name, ``fraction`` and ``seed`` only, not on the order of the records.

    Raises:
        DatasetError: ``fraction`` is not between 0 and 1, or leaves one part empty.
    """
    if not 0 < fraction < 1:
        raise DatasetError(f"--holdout must be above 0 and below 1, got {fraction}")
    names = sorted({record.image for record in split.records}, key=lambda name: digest_of(f"holdout {seed}", name))
    held_out = set(names[: round(len(names) * fraction)])
    if not 0 < len(held_out) < len(names):
        raise DatasetError(
            f"--holdout {fraction} of the {len(names)} photos of {split.name} leaves one part empty: give another share"
        )
    is_held_out = np.array([record.image in held_out for record in split.records])
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def fold_rows(records: Sequence[Record], folds: int, seed: int) -> list[Rows]:
    """Divide the rows of ``records`` into ``folds`` folds, at random by photo; sizes in photos differ by at most 1.

    Raises:
        DatasetError: there are fewer photos than folds.
    """
    names = sorted({record.image for record in records}, key=lambda name: digest_of(f"fold {seed}", name))
    if len(names) < folds:
        raise DatasetError(f"{len(names)} photos cannot be divided into {folds} folds: give fewer --folds")
    fold = {name: number % folds for number, name in enumerate(names)}
    of_row = np.array([fold[record.image] for record in records])
    return [np.flatnonzero(of_row == number) for number in range(folds)]


def refuse(headline: str, errors: Sequence[str]) -> None:
    """Raise if there are ``errors``.

    Raises:
        DatasetError: the headline, and the first errors, one a line.
    """
    if errors:
        more = [f"and {len(errors) - _MAX_ERRORS} more"] if len(errors) > _MAX_ERRORS else []
        raise DatasetError(f"{headline}:", [*errors[:_MAX_ERRORS], *more])


def _refuse_records(path: Path, errors: Sequence[str], records: int) -> None:
    refuse(f"{path}: {len(errors)} error(s) in {records} records", errors)


def read_list(path: Path, remedy: str) -> list[Any]:
    """Read a JSON list that is not empty.

    Raises:
        DatasetError: ``path`` is missing, which ``remedy`` mends, or holds something else.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist: {remedy}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(raw, list) or not raw:
        length = f" of length {len(raw)}" if isinstance(raw, list | dict | str) else ""
        raise DatasetError(f"{path}: expected a list of records, got {type(raw).__name__}{length}")
    return raw


def _record_errors(raw: list[Any], labelled: bool) -> Iterator[str]:
    first: dict[str, int] = {}
    for number, entry in enumerate(raw):
        if not isinstance(entry, dict):
            yield f"record {number}: expected an object, got {type(entry).__name__}"
            continue
        image: Any = entry.get("image")
        if error := _image_error(image):
            yield f"record {number}: {error}"
        elif (earlier := first.setdefault(image, number)) != number:
            yield f"record {number}: image {image!r} is also the image of record {earlier}"
        if not _is_text(entry.get("question")):  # a few of train's are empty
            yield f"record {number}: 'question' must be text, got {entry.get('question')!r}"
        if labelled:
            yield from (f"record {number}: {error}" for error in _label_errors(entry))


def _is_text(value: object) -> bool:
    """Whether a value is valid UTF-8 text; JSON also allows lone surrogates."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode("utf-8") == value


def _image_error(image: object) -> str | None:
    if not isinstance(image, str) or not image or not _is_text(image):
        return f"'image' must be text, got {image!r}"
    # of any operating system: the file is read on others too
    if image in (".", "..") or any(character in image for character in "/\\\0"):
        return f"'image' must be a bare file name, got {image!r}"
    return None


def _label_errors(entry: dict[str, Any]) -> Iterator[str]:
    answers = entry.get("answers")
    if not isinstance(answers, list) or len(answers) != ANSWERS_PER_QUESTION:
        got = len(answers) if isinstance(answers, list) else answers
        yield f"'answers' must be a list of {ANSWERS_PER_QUESTION}, got {got!r}"
    elif not all(isinstance(answer, dict) and _is_text(answer.get("answer")) for answer in answers):
        yield "each of 'answers' must be an object with the text 'answer'"
    else:
        confidences = [answer.get("answer_confidence") for answer in answers]
        if wrong := [confidence for confidence in confidences if confidence not in CONFIDENCES]:
            yield f"'answer_confidence' must be yes, maybe, no or null, got {wrong[0]!r}"
    if not isinstance(entry.get("answer_type"), str) or entry["answer_type"] not in ANSWER_TYPES:
        yield f"'answer_type' must be one of {', '.join(ANSWER_TYPES)}, got {entry.get('answer_type')!r}"
    if entry.get("answerable") not in (0, 1):
        yield f"'answerable' must be 0 or 1, got {entry.get('answerable')!r}"


def _photo_errors(raw: list[Any], photos: Path) -> Iterator[str]:
    present = {path.name for path in photos.iterdir()} if photos.is_dir() else set()

    def check(image: str) -> str | None:
        return _header_error(photos / image) if image in present else f"photo {photos / image} does not exist"

    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        for number, error in enumerate(pool.map(check, [entry["image"] for entry in raw])):
            if error:
                yield f"record {number}: {error}"


def _header_error(path: Path) -> str | None:
    try:
        check_header(path)
    except ImageError as error:
        return f"photo {error}"
    return None


def _record(entry: dict[str, Any], labelled: bool) -> Record:
    if not labelled:
        return Record(entry["image"], entry["question"])
    return Record(
        image=entry["image"],
        question=entry["question"],
        answers=tuple(answer["answer"] for answer in entry["answers"]),
        confidences=tuple(answer.get("answer_confidence") for answer in entry["answers"]),
        answer_type=entry["answer_type"],
        answerable=bool(entry["answerable"]),
    )
