"""The HTML report of an evaluation and the model card of a run."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from training.artifacts import staged_file
from training.backbone import clip_name, is_openai
from training.baselines import LABELS
from training.dataset import Split
from training.plots import as_svg, confusion_plot, coverage_plot, curves, quality_plot, reliability_plot
from training.quality import PUBLISHED_UNRECOGNIZABLE_AP
from training.recipe import RECIPES, REPORT, flag_of
from training.run import CARD_FILE, METRICS_FILE, RUN_FILE, Run, annotations_of_fit, read_epochs, read_scores
from training.scoring import Scores

_TEMPLATES = Path(__file__).with_name("templates")
CARD_ROWS = (  # label, key, digits
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


def write_report(path: Path, run: Run, split: Split, scores: Scores) -> None:
    """Write the report of ``run`` on a labelled split: one HTML page that loads no other resource."""
    metrics = scores.metrics
    plots = _plots(run, scores)
    page = _template("report.html").render(
        title=f"{'VizWiz' if split.is_vizwiz else 'Visual'} question answering: evaluation on {split.name}",
        m=metrics,
        baselines=LABELS,
        run=run.folder.name,
        digest=run.digest[:12],
        data_digest=split.digest[:12],
        recipe=run.config["recipe"]["name"],
        overrides=overrides(run.config["recipe"]),
        clips=" and ".join(clip_name(clip["source"]) for clip in run.clips),
        answers=len(run.answers),
        folds=run.config["recipe"]["folds"] > 1,
        plots={name: _data_uri(figure) for name, (figure, _) in plots.items()},
        alts={name: alt for name, (_, alt) in plots.items()},
        coverage=[
            *((" (all)" if row["coverage"] == 100 else "", row) for row in metrics["selective_accuracy"]["deciles"]),
            (" (at threshold 0.5)", metrics["selective_accuracy"]["at_threshold"]),
        ],
        quality=metrics.get("quality"),
        published_unrecognizable_ap=PUBLISHED_UNRECOGNIZABLE_AP,
    )
    with staged_file(path) as staging:
        staging.write_text(page, encoding="utf-8")


def write_model_card(folder: Path, name: str | None = None) -> Path:
    """Write ``MODEL_CARD.md`` from the files of a run folder; returns its path.

    Evaluations in the folder are included, except those on another val than the fit's.

    Args:
        folder: holds run.json and metrics.json.
        name: of the run, where it is not the name of ``folder``.

    Raises:
        RunError: metrics.json cannot be read.
    """
    config = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    fitted = read_scores(folder)
    fitted["best"] |= {key: fitted[key] for key in ("majority_baseline", "baselines")}
    evaluations = {"val, in the fit": fitted["best"]} | _evaluations(folder, annotations_of_fit(config))
    columns = list(evaluations.values())
    majority = f'- always "{fitted["majority_baseline"]["answer"]}"'
    card = _template("model_card.md").render(
        name=name or folder.name,
        config=config,
        is_vizwiz=config["data"].get("is_vizwiz", False),
        overrides=overrides(config["recipe"]),
        clips=[
            {"squash": False, **clip, "name": clip_name(clip["source"]), "is_openai": is_openai(clip["source"])}
            for clip in config["clips"]
        ],
        splits=list(evaluations),
        scores=[
            *_rows(CARD_ROWS[:1], columns),
            *_rows([(majority, CARD_ROWS[0][1], 2)], [scores["majority_baseline"] for scores in columns]),
            *(
                row
                for baseline in fitted["baselines"]
                for row in _rows(
                    [(f"- {LABELS[baseline]}", CARD_ROWS[0][1], 2)],
                    [scores["baselines"].get(baseline, {}) for scores in columns],
                )
            ),
            *_rows(CARD_ROWS[1:], columns),
        ],
        quality=fitted["best"].get("quality"),
        published_unrecognizable_ap=PUBLISHED_UNRECOGNIZABLE_AP,
    )
    path = folder / CARD_FILE
    with staged_file(path) as staging:
        staging.write_text(card, encoding="utf-8")
    return path


def overrides(recipe: dict[str, Any]) -> str:
    """Settings of a fit that differ from those of its recipe, as flags of ``training.fit``."""
    defaults = vars(RECIPES.get(recipe["name"], REPORT))
    return " ".join(
        f"{flag_of(setting)} {value}"
        for setting, value in recipe.items()
        if setting != "name" and value != defaults.get(setting)
    )


def describe_scores(metrics: dict[str, Any]) -> str:
    """The scores of an evaluation as lines of text, each beside its chance level or baseline."""
    selective = metrics["selective_accuracy"]["at_threshold"]
    majority = metrics["majority_baseline"]
    types = ", ".join(
        f"{name} {row['vqa_accuracy_leave_one_out']:.2f}" for name, row in metrics["by_answer_type"].items()
    )
    baselines = [
        f"{LABELS[name]}: VQA {row['vqa_accuracy_leave_one_out']:.2f} (min3 {row['vqa_accuracy_min3']:.2f}), "
        f"AP unanswerable {row['unanswerable_ap']:.3f}, answerable {row['answerable_ap']:.3f}"
        for name, row in metrics["baselines"].items()
    ]
    return "\n".join(
        (
            f"VQA {metrics['vqa_accuracy_leave_one_out']:.2f} (min3 {metrics['vqa_accuracy_min3']:.2f}); always "
            f"{majority['answer']!r} {majority['vqa_accuracy_leave_one_out']:.2f}; oracle over the answer list "
            f"{metrics['oracle_accuracy']:.2f}",
            *baselines,
            f"by type: {types}",
            f"AP unanswerable {metrics['unanswerable_ap']:.3f} (chance {metrics['unanswerable_ap_chance']:.3f}), "
            f"answerable {metrics['answerable_ap']:.3f} (chance {metrics['answerable_ap_chance']:.3f}); "
            f"F1 {metrics['unanswerable_f1']:.3f}/{metrics['answerable_f1']:.3f}, "
            f"accuracy {metrics['answerable_accuracy']:.2f}, "
            f"calibration error {metrics['answerable_ece']:.3f}",
            f"at threshold 0.5: {selective['coverage']:.1f}% of the questions answered, VQA "
            f"{selective['vqa_accuracy_leave_one_out']:.2f}, {selective['answerable']:.1f}% of them answerable",
            *([describe_quality(metrics["quality"])] if "quality" in metrics else []),
        )
    )


def describe_quality(scores: dict[str, Any]) -> str:
    """Scores of photo quality as text."""
    issues = ", ".join(
        f"{issue} {math.nan if row['ap'] is None else row['ap']:.3f} ({row['ap_chance']:.3f})"
        for issue, row in scores["issues"].items()
    )
    lines = f"photo quality, AP (chance) on {scores['photos']:,} photos: {issues}"
    if "advice" in scores:  # of an evaluation
        advice = scores["advice"]
        lines += (
            f"\nadvice: {advice['with_reason']} of {advice['declined']} declined questions get a reason, "
            f"{advice['right_reason']} of them a right one"
        )
    return lines


def _evaluations(folder: Path, annotations: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Metrics by split, of the evaluations whose annotation file is the fit's."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"evaluation-*/{METRICS_FILE}"))
    ]
    return {metrics["split"]: metrics for metrics in found if metrics["data_sha256"] == annotations[metrics["split"]]}


def _rows(
    measures: Sequence[tuple[str, str, int]], columns: Iterable[dict[str, Any]]
) -> Iterator[tuple[str, list[str]]]:
    """Rows of the card's table; ``measures`` are label, key and digits."""
    for label, key, digits in measures:
        values = [scores.get(key) for scores in columns]
        yield label, ["" if value is None else f"{value:.{digits}f}" for value in values]


def _template(name: str) -> Any:
    """A template; HTML is escaped, and an undefined name is an error."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=not name.endswith(".html"),
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


def _plots(run: Run, scores: Scores) -> dict[str, tuple[Figure, str]]:
    """Figures with their alternative texts; the tables of the report hold the numbers."""
    metrics = scores.metrics
    history = read_epochs(run.folder)
    first, last = history[0], history[-1]
    quality = {}
    if "quality" in metrics:
        issues = metrics["quality"]["issues"]
        listed = ", ".join(f"{issue} {row['ap']:.2f} ({row['ap_chance']:.2f})" for issue, row in issues.items())
        alt = f"Average precision of each quality issue, chance in brackets: {listed}; and reliability diagrams."
        quality = {"quality": (quality_plot(issues, scores.quality), alt)}
    return quality | {
        "curves": (
            curves(history, None, metrics["majority_baseline"]["vqa_accuracy_leave_one_out"]),
            f"Loss and VQA accuracy per epoch, {len(history)} rows: validation loss from {first['val_loss']:.3f} to "
            f"{last['val_loss']:.3f}, leave-one-out accuracy from {first['vqa_accuracy_leave_one_out']:.2f} to "
            f"{last['vqa_accuracy_leave_one_out']:.2f}.",
        ),
        "reliability": (
            reliability_plot(scores.answerability, scores.answer),
            "Two reliability diagrams: observed outcome against mean confidence, for answerability and for the answer. "
            f"Expected calibration errors {metrics['answerable_ece']:.3f} and {metrics['answer_ece']:.3f}.",
        ),
        "coverage": (
            coverage_plot(scores.selective),
            "VQA accuracy of the answered questions, and the share of them whose photo can answer, against the share "
            "of questions answered. The table below holds the values.",
        ),
        "confusion": (
            confusion_plot(np.array(metrics["answer_types"]["confusion"]), metrics["answer_types"]["names"]),
            f"Confusion of answer types; {metrics['answer_type_accuracy']:.1f}% are right. The table below holds the "
            "counts.",
        ),
    }


def _data_uri(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(as_svg(figure)).decode()
