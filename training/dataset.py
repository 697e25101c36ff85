"""Reads a VizWiz folder: ``Annotations/{split}.json`` beside the photos in ``{split}/``.

A split is checked as a whole before anything is computed from it, and all its problems are reported at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.artifacts import file_digest
from vizwiz_client.contract.errors import ImageError, escape_controls
from vizwiz_client.contract.image import check_header

ANSWERS_PER_QUESTION = 10
ANSWER_TYPES = ("other", "unanswerable", "yes/no", "number")  # the official four
CONFIDENCES = ("yes", "maybe", "no", None)  # None: unknown, in releases that were put together from others
_VIZWIZ_PHOTO = re.compile(r"VizWiz_(train|val|test)_\d{8}\.jpg")
DEMO_MANIFEST = "demo.json"  # lies in the folder of the demo data
_PROBLEMS_SHOWN = 20
_READERS = 8  # threads that look at photos: on a network drive, opening a file is mostly waiting


class DatasetError(Exception):
    """A folder that is not a readable VizWiz split. Control characters in its text are escaped."""

    def __init__(self, headline: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join(escape_controls(line) for line in (headline, *problems)))


@dataclass(frozen=True)
class Record:
    """One question about one photo, with its ten answers; the official test split hides the answers."""

    image: str
    question: str
    answers: tuple[str, ...] = ()
    confidences: tuple[str | None, ...] = ()
    answer_type: str | None = None
    answerable: bool | None = None


@dataclass(frozen=True)
class Split:
    """The records of one annotation file, in its order, and the folder of their photos."""

    name: str
    records: tuple[Record, ...]
    photos: Path
    digest: str  # SHA-256 of the annotation file

    @property
    def folder(self) -> Path:
        """The VizWiz folder that the split is part of."""
        return self.photos.parent

    @property
    def is_vizwiz(self) -> bool:
        """Whether the photos are named as VizWiz names them, and are not the demo's, which are named alike."""
        named_so = all(_VIZWIZ_PHOTO.fullmatch(record.image) for record in self.records)
        return named_so and not (self.folder / DEMO_MANIFEST).exists()

    def photo_paths(self) -> list[Path]:
        """The path of each record's photo."""
        return [self.photos / record.image for record in self.records]


def read_split(folder: Path, name: str, *, labelled: bool = True, limit: int | None = None) -> Split:
    """Read and check ``folder/Annotations/{name}.json`` and every photo it names.

    Of a photo, the header is read: that it is there, is a picture and has a size that can be used. Its pixels are
    decoded when features are made from them.

    Args:
        labelled: answers are required, as in train and val; without, only image and question are read.
        limit: take the first records only.

    Raises:
        DatasetError: something is missing or malformed; the message lists the problems with their record numbers.
    """
    path = folder / "Annotations" / f"{name}.json"
    raw = _read_list(path)[:limit]
    photos = folder / name
    problems = list(_problems(raw, labelled)) or list(_photo_problems(raw, photos))
    _refuse_records(path, problems, len(raw))
    return Split(name, tuple(_record(entry, labelled) for entry in raw), photos, file_digest(path))


def read_annotations(path: Path, *, labelled: bool = True, limit: int | None = None) -> tuple[Record, ...]:
    """Read and check one annotation file, without the photos it names.

    Args:
        labelled: answers are required, as in train and val; without, only image and question are read.
        limit: take the first records only.

    Raises:
        DatasetError: the file is missing or malformed; the message lists the problems with their record numbers.
    """
    raw = _read_list(path)[:limit]
    _refuse_records(path, list(_problems(raw, labelled)), len(raw))
    return tuple(_record(entry, labelled) for entry in raw)


def refuse(headline: str, problems: Sequence[str]) -> None:
    """Refuse data that have ``problems``.

    Raises:
        DatasetError: there are some; the first of them follow the headline, one a line.
    """
    if problems:
        more = [f"and {len(problems) - _PROBLEMS_SHOWN} more"] if len(problems) > _PROBLEMS_SHOWN else []
        raise DatasetError(f"{headline}:", [*problems[:_PROBLEMS_SHOWN], *more])


def _refuse_records(path: Path, problems: Sequence[str], records: int) -> None:
    refuse(f"{path}: {len(problems)} problem(s) in {records} records", problems)


def _read_list(path: Path) -> list[Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(
            f"{path} does not exist. A VizWiz folder holds Annotations/train.json, Annotations/val.json and the "
            "photos in train/ and val/; see docs/data.md for where to get them."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(raw, list) or not raw:
        length = f" of length {len(raw)}" if isinstance(raw, list | dict | str) else ""
        raise DatasetError(f"{path}: expected a list of records, got {type(raw).__name__}{length}")
    return raw


def _problems(raw: list[Any], labelled: bool) -> Iterator[str]:
    first: dict[str, int] = {}
    for number, entry in enumerate(raw):
        if not isinstance(entry, dict):
            yield f"record {number}: expected an object, got {type(entry).__name__}"
            continue
        image: Any = entry.get("image")
        if problem := _image_problem(image):
            yield f"record {number}: {problem}"
        elif (earlier := first.setdefault(image, number)) != number:
            yield f"record {number}: image {image!r} is that of record {earlier} already"
        if not _is_text(entry.get("question")):  # a few of train's are empty
            yield f"record {number}: 'question' must be text, got {entry.get('question')!r}"
        if labelled:
            yield from (f"record {number}: {problem}" for problem in _label_problems(entry))


def _is_text(value: object) -> bool:
    """Whether a value is text that can be written to a file: JSON also allows halves of a surrogate pair."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode("utf-8") == value


def _image_problem(image: object) -> str | None:
    if not isinstance(image, str) or not image:
        return f"'image' must be text, got {image!r}"
    # on every system, not only on this one: the same file is read on others
    if image in (".", "..") or any(character in image for character in "/\\\0"):
        return f"'image' must be a bare file name, got {image!r}"
    return None


def _label_problems(entry: dict[str, Any]) -> Iterator[str]:
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


def _photo_problems(raw: list[Any], photos: Path) -> Iterator[str]:
    present = {path.name for path in photos.iterdir()} if photos.is_dir() else set()

    def problem(image: str) -> str | None:
        return _header_problem(photos / image) if image in present else f"photo {photos / image} does not exist"

    with ThreadPoolExecutor(_READERS) as pool:
        for number, found in enumerate(pool.map(problem, [entry["image"] for entry in raw])):
            if found:
                yield f"record {number}: {found}"


def _header_problem(path: Path) -> str | None:
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
