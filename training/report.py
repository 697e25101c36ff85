"""The report of an evaluation: one HTML page with its plots and photos inside, which loads nothing from anywhere."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from training.baselines import LABELS
from training.clip_models import clip_name
from training.contact_sheet import best_and_worst
from training.data import Split
from training.evaluation import Evaluation, Predictions
from training.plots import as_svg, confusion_plot, coverage_plot, curves, reliability_plot
from training.progress import read_progress
from training.recipe import RECIPES, REPORT, flag_of
from training.runs import Run
from training.storage import staged_file

_TEMPLATES = Path(__file__).with_name("templates")


def template(name: str) -> Any:
    """A template of ``templates/``; text put into HTML is escaped, and a name that is not given is an error."""
    loader = FileSystemLoader(_TEMPLATES)
    environment = Environment(
        loader=loader,
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=not name.endswith(".html"),
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


def write_report(path: Path, run: Run, split: Split, predictions: Predictions, evaluation: Evaluation) -> None:
    """Write the report of ``run``'s predictions about a labelled split, whole or not at all."""
    metrics = evaluation.metrics
    best, worst = best_and_worst(split, predictions, evaluation.accuracy)
    plots = _plots(run, evaluation)
    page = template("report.html").render(
        title=f"{'VizWiz' if split.is_vizwiz else 'Visual'} question answering: evaluation on {split.name}",
        is_vizwiz=split.is_vizwiz,
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
            *((" (all)" if row["coverage"] == 100 else "", row) for row in metrics["declining"]["tenths"]),
            (" (declining under 0.5)", metrics["declining"]["at_0.5"]),
        ],
        best=best,
        worst=worst,
    )
    with staged_file(path) as staging:
        staging.write_text(page, encoding="utf-8")


def overrides(recipe: dict[str, Any]) -> str:
    """The settings of a fit that differ from those of the recipe it is named after, as flags of ``training.fit``."""
    named = vars(RECIPES.get(recipe["name"], REPORT))
    return " ".join(
        f"{flag_of(setting)} {value}"
        for setting, value in recipe.items()
        if setting != "name" and value != named.get(setting)
    )


def _plots(run: Run, evaluation: Evaluation) -> dict[str, tuple[Figure, str]]:
    """The figures, each with what is said of it to those who do not see it; the tables beside them hold the numbers."""
    metrics, constant = evaluation.metrics, evaluation.metrics["constant"]["vqa_accuracy_leave_one_out"]
    history = read_progress(run.folder)
    counts = np.array(metrics["answer_types"]["confusion"])
    return {
        "curves": (curves(history, None, constant), _say_curves(history)),
        "reliability": (
            reliability_plot(evaluation.answerability, evaluation.answer),
            "Two reliability diagrams: observed outcome against mean confidence, for answerability and for the answer. "
            f"Expected calibration errors {metrics['answerable_ece']:.3f} and {metrics['answer_ece']:.3f}.",
        ),
        "coverage": (
            coverage_plot(evaluation.coverage),
            "VQA accuracy of the answered questions, and the share of them whose photo can answer, against the share "
            "of questions answered. The table below holds the values.",
        ),
        "confusion": (
            confusion_plot(counts, metrics["answer_types"]["names"]),
            f"Confusion of answer types; {metrics['answer_type_accuracy']:.1f}% are right. The table below holds the "
            "counts.",
        ),
    }


def _say_curves(history: list[dict[str, Any]]) -> str:
    if not history:
        return "Loss and accuracy per epoch: the run recorded no epochs."
    first, last = history[0], history[-1]
    return (
        f"Loss and VQA accuracy per epoch, {len(history)} rows: validation loss from {first['val_loss']:.3f} to "
        f"{last['val_loss']:.3f}, leave-one-out accuracy from {first['vqa_accuracy_leave_one_out']:.2f} to "
        f"{last['vqa_accuracy_leave_one_out']:.2f}."
    )


def _data_uri(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(as_svg(figure)).decode()
