from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from training import evaluate, fit
from training.backbone import FrozenClip
from training.dataset import DatasetError, Record, Split, fold_rows, read_annotations, read_split
from training.metrics import choose_threshold
from training.model import ClipEnsemble, Predictor
from training.quality import (
    ISSUES,
    add_votes,
    advice_scores,
    counts,
    fit_quality,
    fit_records,
    quality_scores,
    vote_shares,
)
from training.recipe import Recipe
from training.report import describe_scores
from training.run import read_run

CODES = ("BLR", "FRM", "DRK", "BRT", "OBS", "ROT", "OTH", "NON")


def entry(image: str, unrecognizable: int = 0, **votes: int) -> dict[str, Any]:
    return {"image": image, "flaws": dict.fromkeys(CODES, 0) | votes, "unrecognizable": unrecognizable}


def write_votes(folder: Path, split: str, entries: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def test_votes_join_their_photos(some_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = read_split(some_photos, "val")
    first, second = (record.image for record in split.records[:2])
    folder = write_votes(tmp_path, "val", [entry(second, 5, DRK=4), entry("other.jpg"), entry(first, BLR=2, ROT=1)])
    joined = add_votes(split, folder)
    assert [record.votes for record in joined.records[:3]] == [(2, 0, 0, 0, 0, 1, 0), (0, 0, 4, 0, 0, 0, 5), None]
    assert f"votes on 2 of {len(split.records)} photos of val" in capsys.readouterr().out
    shares = vote_shares(joined.records)
    assert shares is not None
    np.testing.assert_allclose(shares[0], [0.4, 0, 0, 0, 0, 0.2, 0])
    assert counts(shares[:2]).tolist() == [
        [True, False, False, False, False, False, False],  # 2 of 5 votes count, 1 does not
        [False, False, True, False, False, False, True],
    ]
    assert np.isnan(shares[2]).all()


def test_votes_are_never_required(some_photos: Path, tmp_path: Path) -> None:
    split = read_split(some_photos, "val")
    assert add_votes(split) is split
    assert vote_shares(split.records) is None
    with pytest.raises(DatasetError, match=r"val.json does not exist: .*training.download --quality"):
        add_votes(split, tmp_path)  # a folder that was named


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (["a.jpg"], "photo 0: expected an object"),
        ([{"image": "a.jpg", "unrecognizable": 0}], "photo 0: expected an object"),
        ([entry("")], "photo 0: 'image' must be text, got ''"),
        ([entry("a.jpg"), entry("a.jpg")], "photo 1: image 'a.jpg' occurs more than once"),
        ([entry("a.jpg", BLR=6)], "photo 0: votes on 'BLR' must be 0 to 5, got 6"),
        ([entry("a.jpg", ROT=True)], "photo 0: votes on 'ROT' must be 0 to 5, got True"),
        ([{"image": "a.jpg", "flaws": {}, "unrecognizable": 0}], "photo 0: votes on 'BLR' must be 0 to 5, got None"),
        ([entry("a.jpg", unrecognizable=-1)], "photo 0: votes on 'unrecognizable' must be 0 to 5, got -1"),
    ],
)
def test_malformed_votes_are_refused(entries: list[Any], problem: str, some_photos: Path, tmp_path: Path) -> None:
    folder = write_votes(tmp_path, "val", entries)
    with pytest.raises(DatasetError) as error:
        add_votes(read_split(some_photos, "val"), folder)
    assert problem in str(error.value)


def test_all_photos_of_vizwiz_have_votes(vizwiz: Path, real_annotations: Callable[[str], Path]) -> None:
    """All 24,842 photos of train and val."""
    for name, total in (("train", 20_523), ("val", 4_319)):
        records = read_annotations(real_annotations(f"{name}_reconstructed"))
        joined = add_votes(Split(name, records, vizwiz / name, "")).records
        assert len(joined) == total
        assert all(record.votes for record in joined)


def planted(photos: int, embed_dim: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Features, and votes that each depend on one of them; the last rows have no votes."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((photos, embed_dim)).astype(np.float32)
    chance = 1 / (1 + np.exp(-(3 * features[:, : len(ISSUES)] - 2)))
    shares = (random.binomial(5, chance) / 5).astype(np.float32)
    shares[-20:] = np.nan
    return torch.from_numpy(features), shares


def folds_of(photos: int) -> list[np.ndarray]:
    return fold_rows([Record(f"{row}.jpg", "?") for row in range(photos)], 4, 0)


def test_heads_learn_what_the_votes_depend_on() -> None:
    images, shares = planted(800, 12)
    state = torch.get_rng_state()
    fitted = fit_quality([images], shares, folds_of(800), calibrated=True)
    assert torch.equal(torch.get_rng_state(), state)
    predictor = Predictor([], fitted.heads[0])
    test, test_shares = planted(3_000, 12, seed=1)
    with torch.inference_mode():
        found = torch.stack([torch.sigmoid(head(test)) for head in predictor.quality]).mean(dim=0).numpy()
    scores = quality_scores(found, test_shares, np.ones(3_000, bool), fitted.advise_from)
    assert scores["photos"] == 2_980
    for row in scores["issues"].values():
        assert (row["ap"] - row["ap_chance"]) / (1 - row["ap_chance"]) > 0.6
        assert row["ece"] < 0.1
        assert row["advice_precision"] > 0.7


def test_calibration_turns_shares_into_probabilities() -> None:
    """That an issue counts is more probable than a vote for it, where voters mostly agree."""
    images, shares = planted(2_000, 12)
    eces = []
    for calibrated in (False, True):
        fitted = fit_quality([images], shares, folds_of(2_000), calibrated=calibrated)
        with torch.inference_mode():
            found = torch.stack([torch.sigmoid(head(images)) for head in fitted.heads[0]]).mean(dim=0).numpy()
        rows = quality_scores(found, shares, np.ones(2_000, bool), {})["issues"].values()
        eces.append(np.mean([row["ece"] for row in rows]))
    assert eces[1] < eces[0]


def test_an_issue_that_is_never_right_is_never_said() -> None:
    images, shares = planted(400, 12)
    shares[:, 3] = np.where(np.arange(400) % 7 == 0, 1.0, 0.0)  # nothing in the features tells
    fitted = fit_quality([images], shares, folds_of(400), calibrated=True)
    assert "bright" not in fitted.advise_from
    assert "blur" in fitted.advise_from


def test_thresholds_come_from_heads_that_have_not_seen_the_photo() -> None:
    """Nothing in the features tells; heads that had seen the photos would remember their votes."""
    images, _ = planted(220, 150)
    _, shares = planted(220, 12, seed=1)
    assert fit_quality([images], shares, folds_of(220), calibrated=True).advise_from == {}


def test_two_clips_are_averaged() -> None:
    wide, shares = planted(400, 12)
    folds = folds_of(400)
    fitted = fit_quality([wide, wide[:, :7]], shares, folds, calibrated=False)
    assert [len(heads) for heads in fitted.heads] == [4, 4]
    alone = fit_quality([wide], shares, folds, calibrated=False)
    torch.testing.assert_close(fitted.heads[0][2].linear.weight, alone.heads[0][2].linear.weight)
    twice = fit_quality([wide, wide], shares, folds, calibrated=False)
    assert twice.advise_from == pytest.approx(alone.advise_from), "the mean of equal probabilities"
    assert twice.advise_from


def test_few_photos_get_a_large_penalty() -> None:
    """With the smallest penalty, heads of 150 features on 220 photos are worse than each issue's share of the votes."""
    images, shares = planted(220, 150)
    test, wanted = (torch.as_tensor(each)[:-20] for each in planted(1_000, 150, seed=1))
    issues = torch.from_numpy(shares[:-20]).mean(dim=0).expand_as(wanted)
    chance = functional.binary_cross_entropy(issues, wanted)
    for head in fit_quality([images], shares, folds_of(220), calibrated=False).heads[0]:
        with torch.inference_mode():
            assert functional.binary_cross_entropy_with_logits(head(test), wanted) < chance


@pytest.mark.parametrize(
    ("confidence", "right", "expected"),
    [
        ([0.9] * 20 + [0.5] * 20, [1] * 20 + [0] * 20, 0.9),
        ([0.9] * 20 + [0.5] * 20, [1] * 20 + [1] * 12 + [0] * 8, 0.5),  # 32 of 40 are right
        ([0.9] * 20 + [0.5] * 20, [1] * 20 + [1] * 9 + [0] * 11, 0.9),  # 29 of 40: 72%, give or take 7
        ([0.9] * 19 + [0.5], [1] * 20, 0.5),  # the first 19 are too few
        ([0.9] * 19, [1] * 19, None),
        ([0.9] * 20 + [0.5] * 20, [0] * 20 + [1] * 20, None),
        ([0.9] * 20, [0.85] * 20, 0.9),  # graded
    ],
)
def test_thresholds(confidence: list[float], right: list[float], expected: float | None) -> None:
    assert choose_threshold(np.array(confidence), np.array(right, np.float64)) == expected


def test_scores_of_a_table() -> None:
    """Four photos, of which one has no votes; blur counts in two."""
    shares = np.zeros((4, len(ISSUES)), np.float32)
    shares[:, 0] = [1.0, 0.4, 0.2, np.nan]
    shares[3] = np.nan
    shares[0, -1] = 0.6
    probabilities = np.full((4, len(ISSUES)), 0.1, np.float32)
    probabilities[:, 0] = [0.9, 0.2, 0.6, 0.5]
    answerable = np.array([False, True, False, True])
    scores = quality_scores(probabilities, shares, answerable, {"blur": 0.55})
    blur = scores["issues"]["blur"]
    assert scores["photos"] == 3
    assert blur["ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert blur["ap_chance"] == pytest.approx(2 / 3)
    assert blur["f1"] == pytest.approx(0.5)
    assert blur["advice_precision"] == pytest.approx(0.5)
    assert blur["advice_recall"] == pytest.approx(0.5)
    assert np.isnan(scores["issues"]["dark"]["ap"])
    assert np.isnan(scores["issues"]["dark"]["advice_precision"])
    assert scores["unrecognizable_if_unanswerable"] == {"ap": pytest.approx(0.5), "ap_chance": 0.5, "photos": 2}


def test_advice_is_counted_where_it_is_given() -> None:
    """Five photos: two reasons of which one is right, one wrong, none said, not declined, no votes."""
    names = list(ISSUES)
    probabilities = np.zeros((5, len(ISSUES)), np.float32)
    shares = np.zeros((5, len(ISSUES)), np.float32)
    probabilities[:, names.index("blur")] = [0.9, 0.9, 0.5, 0.9, 0.9]
    probabilities[0, names.index("dark")] = 0.8
    shares[0, names.index("dark")] = 0.4
    shares[4] = np.nan
    declined = np.array([True, True, True, False, True])
    assert advice_scores(probabilities, shares, declined, {"blur": 0.6, "dark": 0.6}) == {
        "declined": 3,
        "with_reason": 2,
        "right_reason": 1,
        "reasons": 3,
        "right_reasons": 1,
    }


def test_a_fit_with_votes_serves_quality_and_moves_no_other_figure(
    some_photos: Path, tiny_vit: FrozenClip, tmp_path: Path
) -> None:
    splits = [read_split(some_photos, name) for name in ("train", "val")]
    for split in splits:
        write_votes(
            tmp_path / "votes",
            split.name,
            [entry(record.image, BLR=5 * (n % 2), FRM=n % 6) for n, record in enumerate(split.records)],
        )
    runs = []
    for recipe in (Recipe(epochs=2), Recipe(epochs=2, folds=2)):
        for given in (splits, [add_votes(split, tmp_path / "votes") for split in splits]):
            runs.append(read_run(fit.fit(*given, tiny_vit, recipe, tmp_path / "runs", tmp_path / "cache")))
    for without, votes in (runs[:2], runs[2:]):
        assert without.quality_issues == []
        assert votes.quality_issues == list(ISSUES)
        plain, with_quality = without.load_ensemble(), votes.load_ensemble()
        assert isinstance(with_quality, ClipEnsemble)
        weights = with_quality.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in plain.state_dict().items())
        features = [(torch.ones(1, 64), torch.ones(1, 64))]
        assert plain(features).quality is None
        assert with_quality(features).quality.shape == (1, len(ISSUES))
        scores, scores_with = (
            json.loads((run.folder / "metrics.json").read_text())["best"] for run in (without, votes)
        )
        assert scores_with.pop("quality")["photos"] == len(splits[1].records)
        assert scores_with == scores


def test_scores_are_shown_where_people_look(some_photos: Path, tiny_vit: FrozenClip, tmp_path: Path) -> None:
    splits = [read_split(some_photos, name) for name in ("train", "val")]
    for split in splits:  # nobody saw a bright photo: its average precision is undefined
        entries = [entry(record.image, BLR=5 * (n % 2)) for n, record in enumerate(split.records)]
        write_votes(tmp_path / "votes", split.name, entries)
    train, val = (add_votes(split, tmp_path / "votes") for split in splits)
    folder = fit.fit(train, val, tiny_vit, Recipe(epochs=2), tmp_path / "runs", tmp_path / "cache")
    run = read_run(folder)
    out = tmp_path / "evaluation"
    evaluated = evaluate.read_records(run, "val", quality=tmp_path / "votes")
    metrics = evaluate.evaluate_run(run, evaluated, [tiny_vit], tmp_path / "cache", out)
    assert metrics is not None
    assert metrics["quality"]["photos"] == len(val.records)
    written = json.loads((out / "metrics.json").read_text())
    assert written["quality"]["issues"]["bright"]["ap"] is None
    assert {"confidence", "observed", "records"} == written["reliability"]["quality_blur"][0].keys()
    page = (out / "report.html").read_text()
    assert "<h2>Photo quality</h2>" in page
    assert '<th scope="row">bright</th><td>–</td>' in page
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"| blur | {metrics['quality']['issues']['blur']['ap']:.3f} |" in card
    assert "| bright |  |" in card
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert events.Scalars("quality/blur ap")[0].value == pytest.approx(metrics["quality"]["issues"]["blur"]["ap"])
    assert "photo quality, AP (chance)" in describe_scores(metrics)


@pytest.mark.parametrize(("photos", "voted", "heads"), [(3, 3, 3), (2, 2, 2), (1, 1, 0), (20, 1, 0), (20, 0, 0)])
def test_a_fit_of_few_photos(photos: int, voted: int, heads: int, some_photos: Path) -> None:
    """Each head needs a photo with votes outside its fold."""
    records = read_split(some_photos, "train", limit=photos).records
    records = tuple(
        replace(record, votes=(3,) * len(ISSUES) if number < voted else None) for number, record in enumerate(records)
    )
    fitted = fit_records(records, [torch.randn(photos, 8)], Recipe())
    assert len(fitted.heads[0] if fitted else []) == heads
    for head in fitted.heads[0] if fitted else []:
        assert torch.isfinite(head(torch.randn(2, 8))).all()


def test_votes_of_some_photos_alone_are_enough(some_photos: Path, tiny_vit: FrozenClip, tmp_path: Path) -> None:
    train, val = (read_split(some_photos, name) for name in ("train", "val"))
    folder = write_votes(tmp_path / "votes", "train", [entry(record.image, BLR=3) for record in train.records[:30]])
    run = read_run(
        fit.fit(add_votes(train, folder), val, tiny_vit, Recipe(epochs=1), tmp_path / "runs", tmp_path / "cache")
    )
    assert run.quality_issues == list(ISSUES)
    assert "quality" not in json.loads((run.folder / "metrics.json").read_text())["best"]  # val has no votes
    assert run.load_ensemble()([(torch.ones(1, 64), torch.ones(1, 64))]).quality is not None
