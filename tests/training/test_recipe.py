from __future__ import annotations

import argparse
import math
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import pytest

from training.recipe import HELP_TEXTS, RECIPES, REPORT, Recipe, RecipeError, add_recipe_flags, flag_of, recipe_from


def parse(*arguments: str) -> Recipe:
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser)
    return recipe_from(parser.parse_args(arguments))


def test_the_reports_recipe_is_the_default() -> None:
    assert parse() == Recipe() == RECIPES["report"] == REPORT
    assert asdict(REPORT) == {
        "name": "report",
        "epochs": 10,
        "repeat_to_steps": 0,
        "learning_rate": 1e-3,
        "batch_size": 128,
        "dropout": 0.5,
        "hidden": 512,
        "projection": "random",
        "seed": 0,
        "vocabulary": "report",
        "types": "official",
        "rotations": 1,
        "folds": 1,
        "answerable_from": "hidden",
        "answerable_quality": "no",
        "answerable_targets": "label",
        "weight_decay": 0.0,
        "decay_trials": 0,
        "schedule": "constant",
        "ema": 0.0,
        "keep": "best",
        "calibration": "none",
    }


def test_the_papers_recipe() -> None:
    paper = parse("--recipe", "paper")
    assert (paper.vocabulary, paper.types, paper.rotations, paper.folds) == ("paper", "paper", 4, 10)


@pytest.mark.parametrize("name", RECIPES)
def test_a_flag_overrides_any_setting(name: str) -> None:
    assert parse("--recipe", name) == RECIPES[name]
    assert parse("--recipe", name, "--epochs", "3", "--dropout", "0") == replace(RECIPES[name], epochs=3, dropout=0.0)
    assert parse("--recipe", name, "--types", "paper").types == "paper"


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        REPORT.epochs = 3  # type: ignore[misc]


def test_all_problems_are_told_together() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(
            epochs=0,
            learning_rate=math.nan,
            hidden=10**9,
            seed=2**64,
            dropout=1,
            schedule="mode",
            rotations=5,
            calibration="platt",
            decay_trials=1,
        )
    assert str(caught.value).split("; ") == [
        "--epochs must be at least 1, got 0",
        "--learning-rate must be above 0 and at most 1, got nan",
        "--dropout must be in [0, 1), got 1",
        "--hidden must be in 1 to 1,048,576, got 1000000000",
        "--seed must be in 0 to 2**32 - 1, got 18446744073709551616",
        "--rotations must be one of 1, 2, 3, 4, got 5",
        "--schedule must be one of constant, cosine, got mode",
        "--decay-trials needs a --weight-decay above 0 to multiply (or --decay-trials 0)",
        "--decay-trials needs --folds 2 or more, whose held-out records decide (or --decay-trials 0)",
        "--calibration platt needs --folds 2 or more, whose held-out records it is fitted on (or --calibration none)",
    ]


@pytest.mark.parametrize(
    ("records", "settings", "steps"),
    [
        (20_523, {"epochs": 10, "batch_size": 128}, 1_610),
        (3_000, {"epochs": 6, "batch_size": 512, "folds": 10}, 36),
        (3_000, {"epochs": 6, "batch_size": 512, "folds": 10, "repeat_to_steps": 400}, 396),
        (300, {"epochs": 6, "batch_size": 512, "repeat_to_steps": 400}, 396),
        (20_523, {"epochs": 6, "batch_size": 512, "folds": 10, "repeat_to_steps": 400}, 222),
    ],
)
def test_the_steps_of_a_fit(records: int, settings: dict[str, int], steps: int) -> None:
    assert Recipe(**settings).steps(records) == steps  # type: ignore[arg-type]


def test_help_explains_every_recipe_and_setting() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_flags(parser)
    shown = " ".join(parser.format_help().split())
    assert HELP_TEXTS.keys() == RECIPES.keys()
    for name, text in HELP_TEXTS.items():
        assert f"{name}: {' '.join(text.split())}." in shown
    for option in fields(Recipe):
        if option.name != "name":
            assert f"{flag_of(option.name)} " in shown


def test_the_documents_table_is_the_recipes() -> None:
    document = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = [line for line in document.splitlines() if line.startswith("| `--")]
    differing = [
        f"| `{flag_of(option.name)}` | {' | '.join(f'`{value}`' for value in values)} |"
        for option in fields(Recipe)
        if option.name != "name"
        and len(set(values := [getattr(recipe, option.name) for recipe in RECIPES.values()])) > 1
    ]
    assert rows == differing
