"""Reads a VizWiz folder: ``Annotations/{split}.json`` beside the photos in ``{split}/``.

A split is checked as a whole before anything is computed from it, and all its problems are reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.storage import file_digest

ANSWERS_PER_QUESTION = 10
ANSWER_TYPES = ("other", "unanswerable", "yes/no", "number")  # the official four
CONFIDENCES = ("yes", "maybe", "no", None)  # None: unknown, in releases that were put together from others
_PROBLEMS_SHOWN = 20


class DatasetError(Exception):
    """A folder that is not a readable VizWiz split."""


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

    def photo_paths(self) -> list[Path]:
        """The path of each record's photo."""
        return [self.photos / record.image for record in self.records]


def read_split(folder: Path, name: str, *, labelled: bool = True, limit: int | None = None) -> Split:
    """Read and check ``folder/Annotations/{name}.json`` and that every photo it names is there.

    Args:
        labelled: answers are required, as in train and val; without, only image and question are read.
        limit: take the first records only.

    Raises:
        DatasetError: something is missing or malformed; the message lists the problems with their record numbers.
    """
    path = folder / "Annotations" / f"{name}.json"
    raw = _read_list(path)[:limit]
    photos = folder / name
    problems = list(_problems(raw, labelled)) or list(_missing_photos(raw, photos))
    if problems:
        shown = "\n  ".join(problems[:_PROBLEMS_SHOWN])
        more = f"\n  and {len(problems) - _PROBLEMS_SHOWN} more" if len(problems) > _PROBLEMS_SHOWN else ""
        raise DatasetError(f"{path}: {len(problems)} problem(s) in {len(raw)} records:\n  {shown}{more}")
    return Split(name, tuple(_record(entry, labelled) for entry in raw), photos, file_digest(path))


def _read_list(path: Path) -> list[Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(
            f"{path} does not exist. A VizWiz folder holds Annotations/train.json, Annotations/val.json and the "
            "photos in train/ and val/; see docs/data.md for where to get them."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(raw, list) or not raw:
        raise DatasetError(f"{path}: expected a list of records, got {type(raw).__name__} of length {len(raw)}")
    return raw


def _problems(raw: list[Any], labelled: bool) -> Iterator[str]:
    for number, entry in enumerate(raw):
        if not isinstance(entry, dict):
            yield f"record {number}: expected an object, got {type(entry).__name__}"
            continue
        for key in ("image", "question"):
            if not isinstance(entry.get(key), str) or not entry[key]:
                yield f"record {number}: {key!r} must be text, got {entry.get(key)!r}"
        image = entry.get("image")
        if isinstance(image, str) and image and (Path(image).name != image or image in (".", "..")):
            yield f"record {number}: 'image' must be a bare file name, got {image!r}"
        if labelled:
            yield from (f"record {number}: {problem}" for problem in _label_problems(entry))


def _label_problems(entry: dict[str, Any]) -> Iterator[str]:
    answers = entry.get("answers")
    if not isinstance(answers, list) or len(answers) != ANSWERS_PER_QUESTION:
        got = len(answers) if isinstance(answers, list) else answers
        yield f"'answers' must be a list of {ANSWERS_PER_QUESTION}, got {got!r}"
    elif not all(isinstance(answer, dict) and isinstance(answer.get("answer"), str) for answer in answers):
        yield "each of 'answers' must be an object with the text 'answer'"
    else:
        confidences = [answer.get("answer_confidence") for answer in answers]
        if wrong := [confidence for confidence in confidences if confidence not in CONFIDENCES]:
            yield f"'answer_confidence' must be yes, maybe, no or null, got {wrong[0]!r}"
    if entry.get("answer_type") not in ANSWER_TYPES:
        yield f"'answer_type' must be one of {', '.join(ANSWER_TYPES)}, got {entry.get('answer_type')!r}"
    if entry.get("answerable") not in (0, 1):
        yield f"'answerable' must be 0 or 1, got {entry.get('answerable')!r}"


def _missing_photos(raw: list[Any], photos: Path) -> Iterator[str]:
    present = {path.name for path in photos.iterdir()} if photos.is_dir() else set()
    for number, entry in enumerate(raw):
        if entry["image"] not in present:
            yield f"record {number}: photo {photos / entry['image']} does not exist"


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
