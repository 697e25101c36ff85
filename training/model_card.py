"""The model card of a run: what the head was made from, how good it is, and what it must not be used for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.baselines import LABELS
from training.clip_models import clip_name
from training.report import overrides, template
from training.runs import CARD_FILE, RUN_FILE, annotations_of_fit, read_scores
from training.storage import staged_file

_SCORES = (
    ("VQA accuracy, leave-one-out (%)", "vqa_accuracy_leave_one_out", 2),
    ("VQA accuracy, min(matches / 3, 1) (%)", "vqa_accuracy_min3", 2),
    ("AP, unanswerable positive (official)", "unanswerable_ap", 3),
    ("- chance", "unanswerable_ap_chance", 3),
    ("AP, answerable positive", "answerable_ap", 3),
    ("- chance", "answerable_ap_chance", 3),
    ("F1 of unanswerable at 0.5 (official)", "unanswerable_f1", 3),
    ("F1 of answerable at 0.5", "answerable_f1", 3),
    ("accuracy of answerability at 0.5 (%)", "answerable_accuracy", 2),
    ("expected calibration error of answerability", "answerable_ece", 3),
)


def write_model_card(folder: Path, name: str | None = None) -> Path:
    """Write ``MODEL_CARD.md`` from what a run folder holds; returns its path.

    The evaluations in it are included, but for those on another val than the fit's.

    Args:
        folder: has run.json and metrics.json.
        name: of the run, where ``folder`` does not have it yet.

    Raises:
        RunError: metrics.json cannot be read.
    """
    config = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    fitted = read_scores(folder)
    fitted["best"] |= {key: fitted[key] for key in ("constant", "baselines") if key in fitted}
    evaluations = {"val, in the fit": fitted["best"]} | _evaluations(folder, annotations_of_fit(config))
    card = template("model_card.md").render(
        name=name or folder.name,
        config=config,
        is_vizwiz=config["data"].get("is_vizwiz", False),
        overrides=overrides(config["recipe"]),
        clips=[clip | {"name": clip_name(clip["source"])} for clip in config["clips"]],
        splits=list(evaluations),
        scores=[
            *_rows(_SCORES[:1], evaluations.values()),
            *_rows(
                [(f'- always "{fitted["constant"]["answer"]}"', "vqa_accuracy_leave_one_out", 2)],
                [scores["constant"] for scores in evaluations.values()],
            ),
            *(
                row
                for name in fitted.get("baselines", {})
                for row in _rows(
                    [(f"- {LABELS[name]}", "vqa_accuracy_leave_one_out", 2)],
                    [scores.get("baselines", {}).get(name, {}) for scores in evaluations.values()],
                )
            ),
            *_rows(_SCORES[1:], evaluations.values()),
        ],
    )
    path = folder / CARD_FILE
    with staged_file(path) as staging:
        staging.write_text(card, encoding="utf-8")
    return path


def describe_scores(metrics: dict[str, Any]) -> str:
    """The scores of an evaluation as lines of text, each beside its chance level or reference."""
    declining = metrics["declining"]["at_0.5"]
    types = ", ".join(
        f"{name} {row['vqa_accuracy_leave_one_out']:.2f}" for name, row in metrics["by_answer_type"].items()
    )
    return "\n".join(
        (
            f"VQA {metrics['vqa_accuracy_leave_one_out']:.2f} (min3 {metrics['vqa_accuracy_min3']:.2f}); always "
            f"{metrics['constant']['answer']!r} {metrics['constant']['vqa_accuracy_leave_one_out']:.2f}; best of the "
            f"answer list {metrics['ceiling']:.2f}",
            *(
                f"{LABELS[name]}: VQA {row['vqa_accuracy_leave_one_out']:.2f} (min3 {row['vqa_accuracy_min3']:.2f}), "
                f"AP unanswerable {row['unanswerable_ap']:.3f}, answerable {row['answerable_ap']:.3f}"
                for name, row in metrics["baselines"].items()
            ),
            f"by type: {types}",
            f"AP unanswerable {metrics['unanswerable_ap']:.3f} (chance {metrics['unanswerable_ap_chance']:.3f}), "
            f"answerable {metrics['answerable_ap']:.3f} (chance {metrics['answerable_ap_chance']:.3f}); "
            f"F1 {metrics['unanswerable_f1']:.3f}/{metrics['answerable_f1']:.3f}, "
            f"accuracy {metrics['answerable_accuracy']:.2f}, "
            f"calibration error {metrics['answerable_ece']:.3f}",
            f"declining under 0.5 answers {declining['coverage']:.1f}% of the questions, with VQA "
            f"{declining['vqa_accuracy_leave_one_out']:.2f}; {declining['answerable']:.1f}% of them can be answered",
        )
    )


def _evaluations(folder: Path, of_fit: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The scores on each split whose annotations are those of the fit."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("evaluation-*/metrics.json"))]
    return {scores["split"]: scores for scores in found if scores["data_sha256"] == of_fit.get(scores["split"])}


def _rows(
    measures: Sequence[tuple[str, str, int]], columns: Iterable[dict[str, Any]]
) -> Iterator[tuple[str, list[str]]]:
    """A row of the table of scores for each of ``measures``: label, key, digits."""
    for label, key, digits in measures:
        yield label, [_number(scores.get(key), digits) for scores in columns]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
