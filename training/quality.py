"""Photo quality: people's votes on the issues of a photo, and the heads that predict them.

VizWiz-QualityIssues (Chiu et al., CVPR 2020) has five people's votes on every photo of VizWiz-VQA. An issue counts from
2 votes on, as in that paper. The votes are files beside the annotations: ``Quality/{train,val}.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn import functional

from training.artifacts import file_digest
from training.dataset import DatasetError, Record, Rows, Split, fold_rows, read_list, refuse
from training.folds import calibrate, find_calibration
from training.metrics import Reliability, average_precision, choose_threshold, expected_calibration_error, reliability
from training.model import QualityHead
from training.recipe import NO, NONE, Recipe
from vizwiz_client.contract.wording import Thresholds, reasons

ISSUES = {  # issue -> its code in the file
    "blur": "BLR",
    "framing": "FRM",
    "dark": "DRK",
    "bright": "BRT",
    "obstruction": "OBS",
    "rotation": "ROT",
    "unrecognizable": "",  # not one of the file's flaws, but a key of its own
}
# Of unrecognizable, by ResNet-152: Chiu et al., table 2. Measured on the 7,750 photos of their val, of which the val of
# VizWiz-VQA has 4,319.
PUBLISHED_UNRECOGNIZABLE_AP = 0.8017
VOTERS = 5
COUNTS_FROM = 2  # votes
SAID_FROM = 0.5  # an issue that is less probable is never said
_FOLDS = 5  # of a fit whose recipe has a single head
QUALITY_FOLDER = "Quality"
_PENALTIES = (1e-4, 1e-3, 1e-2)  # half the squared weights, per record
_MAX_STEPS = 100  # of L-BFGS

Shares = npt.NDArray[np.float32]


def add_votes(split: Split, folder: Path | None = None) -> Split:
    """Join the records of a split with the votes on their photos.

    Args:
        split: train or val.
        folder: has ``train.json`` and ``val.json`` (default: ``Quality/`` in the VizWiz folder, if it exists).

    Returns:
        The split with votes; records whose photo has none keep None. ``split`` itself without a default folder.

    Raises:
        DatasetError: the file is missing or malformed; the message lists all errors.
    """
    path = (folder or split.folder / QUALITY_FOLDER) / f"{split.name}.json"
    if folder is None and not path.exists():
        return split
    votes = read_votes(path)
    records = tuple(replace(record, votes=votes.get(record.image)) for record in split.records)
    joined = sum(record.votes is not None for record in records)
    print(f"photo quality: votes on {joined:,} of {len(records):,} photos of {split.name}")
    return replace(split, records=records, votes_digest=file_digest(path))


def read_votes(path: Path) -> dict[str, tuple[int, ...]]:
    """Votes on each of ISSUES, 0 to 5, by the photo's file name.

    Raises:
        DatasetError: ``path`` is missing or malformed; the message lists all errors.
    """
    raw = read_list(path, "`python -m training.download --quality` makes it (docs/data.md)")
    refuse(f"{path}: errors in {len(raw)} photos", list(_errors(raw)))
    return {entry["image"]: tuple(_votes(entry, issue) for issue in ISSUES) for entry in raw}


def _errors(raw: list[Any]) -> Iterator[str]:
    seen: set[str] = set()
    for number, entry in enumerate(raw):
        if not isinstance(entry, dict) or not isinstance(entry.get("flaws"), dict):
            yield f"photo {number}: expected an object with 'image', 'flaws' and 'unrecognizable', got {entry!r:.80}"
            continue
        image = entry.get("image")
        if not isinstance(image, str) or not image:
            yield f"photo {number}: 'image' must be text, got {image!r}"
        elif image in seen:
            yield f"photo {number}: image {image!r} occurs more than once"
        else:
            seen.add(image)
        for issue, code in ISSUES.items():
            if (found := _votes(entry, issue)) not in range(VOTERS + 1) or isinstance(found, bool):
                yield f"photo {number}: votes on {code or issue!r} must be 0 to {VOTERS}, got {found!r}"


def _votes(entry: dict[str, Any], issue: str) -> Any:
    return entry["flaws"].get(ISSUES[issue]) if ISSUES[issue] else entry.get(issue)


def vote_shares(records: Sequence[Record]) -> Shares | None:
    """Share of the voters who saw each issue, fp32 [N, Q] in [0, 1]; rows of NaN without votes, None if all are."""
    unknown = (float("nan"),) * len(ISSUES)
    rows = [unknown if record.votes is None else record.votes for record in records]
    return None if all(row is unknown for row in rows) else np.array(rows, np.float32) / VOTERS


def quality_folds(records: Sequence[Record], recipe: Recipe) -> list[Rows]:
    """Rows of ``records`` that each quality head is not fitted on: the recipe's folds, or folds of their own.

    Empty where votes are missing, or so few that some head would have none.
    """
    shares, photos = vote_shares(records), len({record.image for record in records})
    number = recipe.folds if recipe.folds > 1 else min(_FOLDS, photos)
    if shares is None or number < 2:
        return []
    folds = fold_rows(records, number, recipe.seed)
    known = ~np.isnan(shares).any(axis=1)
    return folds if all(known.sum() > known[held_out].sum() for held_out in folds) else []


def require_votes(train: Split, recipe: Recipe) -> None:
    """Check that ``train`` has the votes that ``recipe`` needs.

    Raises:
        DatasetError: it has none, or too few.
    """
    if recipe.answerable_quality != NO and not quality_folds(train.records, recipe):
        voted = sum(record.votes is not None for record in train.records)
        raise DatasetError(
            f"--answerable-quality yes needs votes on the photos of train, but {train.folder} has them on {voted} of "
            f"its {len(train.records)}: run `python -m training.download --out {train.folder} --splits train val "
            "--quality`, give their folder with --quality, or give --answerable-quality no"
        )


def counts(shares: Shares) -> npt.NDArray[np.bool_]:
    """Whether each issue counts, bool [N, Q], from the shares of the voters."""
    return shares * VOTERS > COUNTS_FROM - 0.5


class FittedQuality(NamedTuple):
    """Heads fitted on photo quality, and the thresholds of advice."""

    heads: list[list[QualityHead]]  # one for each fold, for each CLIP
    advise_from: dict[
        str, float
    ]  # issue -> lowest probability at which it is reported; it is right in 70% of the photos


def fit_records(records: Sequence[Record], features: Sequence[Tensor], recipe: Recipe) -> FittedQuality | None:
    """Fit heads of photo quality as :func:`fit_quality` does, on :func:`quality_folds`; None where there are none."""
    shares, folds = vote_shares(records), quality_folds(records, recipe)
    if shares is None or not folds:
        return None
    return fit_quality(features, shares, folds, calibrated=recipe.calibration != NONE)


def fit_quality(
    features: Sequence[Tensor], shares: Shares, folds: Sequence[Rows], *, calibrated: bool
) -> FittedQuality:
    """Fit one head per fold for each CLIP. Uses no random numbers.

    Args:
        features: image features of every CLIP, fp32 [N, D] each; D may differ.
        shares: fp32 [N, Q], the targets; rows of NaN are left out.
        folds: rows that each head is not fitted on.
        calibrated: whether the heads predict how probably the issue counts, in place of the share of voters.
    """
    known = ~np.isnan(shares).any(axis=1)
    issue_counts = counts(shares)
    heads: list[list[QualityHead]] = []
    total = np.zeros(shares.shape)  # of the CLIPs' probabilities, each by the head that was not fitted on the record
    for images in features:
        fitted, log_odds = _fit_folds(images, torch.from_numpy(shares).to(images.device), folds, known)
        if calibrated:
            for issue in range(shares.shape[1]):
                found = find_calibration(log_odds[known, issue], issue_counts[known, issue])
                log_odds[:, issue] = found.scale * log_odds[:, issue] + found.offset
                for head in fitted:
                    calibrate(head.linear, found, issue)
        heads.append(fitted)
        total += 1 / (1 + np.exp(-log_odds.astype(np.float64)))
    probabilities = total / len(features)
    thresholds = {
        issue: choose_threshold(probabilities[known, number], issue_counts[known, number])
        for number, issue in enumerate(ISSUES)
    }
    # Many sure photos can carry unsure ones over the precision: what is improbable is not said.
    said = {issue: max(found, SAID_FROM) for issue, found in thresholds.items() if found is not None}
    return FittedQuality(heads, said)


def quality_scores(
    probabilities: Shares, shares: Shares, answerable: npt.NDArray[np.bool_], advise_from: Mapping[str, float]
) -> dict[str, Any]:
    """Score predicted quality issues on the photos that have votes.

    Args:
        probabilities: fp32 [N, Q].
        shares: fp32 [N, Q], of the voters; rows of NaN are left out.
        answerable: bool [N], the annotated label of the question.
        advise_from: the fit's thresholds of advice.

    Returns:
        ``photos``; ``issues``: by name, average precision and that of chance, F1 at 0.5, the calibration error, and the
        threshold of advice with its precision and recall; ``unrecognizable_if_unanswerable``: average precision among
        the unanswerable questions. Undefined values are NaN.
    """
    known = ~np.isnan(shares).any(axis=1)
    probabilities, positive, unanswerable = probabilities[known], counts(shares[known]), ~answerable[known]
    issues = {}
    for number, issue in enumerate(ISSUES):
        confidence, outcome = probabilities[:, number], positive[:, number]
        said = confidence >= advise_from.get(issue, np.inf)
        right = int(np.sum(said & outcome))
        issues[issue] = {
            "ap": average_precision(outcome, confidence),
            "ap_chance": float(np.mean(outcome)),
            "f1": float(f1_score(outcome, confidence >= 0.5, zero_division=0.0)),
            "ece": expected_calibration_error(reliability(confidence, outcome)),
            "advise_from": advise_from.get(issue, float("nan")),
            "advice_precision": right / said.sum() if said.any() else float("nan"),
            "advice_recall": right / outcome.sum() if outcome.any() else float("nan"),
        }
    among = positive[unanswerable, -1]
    return {
        "photos": int(known.sum()),
        "issues": issues,
        "unrecognizable_if_unanswerable": {
            "ap": average_precision(among, probabilities[unanswerable, -1]),
            "ap_chance": float(np.mean(among)) if len(among) else float("nan"),
            "photos": int(unanswerable.sum()),
        },
    }


def advice_scores(
    probabilities: Shares, shares: Shares, declined: npt.NDArray[np.bool_], advise_from: Mapping[str, float]
) -> dict[str, int]:
    """Count what advice is worth where it is given, on the photos that have votes.

    Args:
        probabilities: fp32 [N, Q].
        shares: fp32 [N, Q], of the voters; rows of NaN are left out.
        declined: bool [N], whether the run declines to answer.
        advise_from: the fit's thresholds of advice.

    Returns:
        ``declined`` questions; ``with_reason``, those with advice on an issue; ``right_reason``, those in which one of
        the issues counts; ``reasons`` in all, and ``right_reasons``.
    """
    thresholds = Thresholds(advise_from=advise_from)
    rows = np.flatnonzero(declined & ~np.isnan(shares).any(axis=1))
    issues = list(ISSUES)
    found = []
    for row, right in zip(rows, counts(shares[rows]), strict=True):
        said = reasons(dict(zip(issues, probabilities[row].tolist(), strict=True)), thresholds)
        found.append([bool(right[issues.index(issue)]) for issue in said])
    return {
        "declined": len(rows),
        "with_reason": sum(map(bool, found)),
        "right_reason": sum(map(any, found)),
        "reasons": sum(map(len, found)),
        "right_reasons": sum(map(sum, found)),
    }


def quality_reliability(probabilities: Shares, shares: Shares) -> dict[str, Reliability]:
    """Reliability of each issue's probabilities fp32 [N, Q], on the photos whose ``shares`` [N, Q] are not NaN."""
    known = ~np.isnan(shares).any(axis=1)
    positive = counts(shares[known])
    return {
        issue: reliability(probabilities[known, number], positive[:, number]) for number, issue in enumerate(ISSUES)
    }


def _fit_folds(
    images: Tensor, targets: Tensor, folds: Sequence[Rows], known: npt.NDArray[np.bool_]
) -> tuple[list[QualityHead], npt.NDArray[np.float32]]:
    """One head per fold, and the log-odds [N, Q] of each record by the head that was not fitted on it."""
    heads = []
    log_odds = np.zeros(targets.shape, np.float32)
    penalty = None
    for held_out in folds:
        rows = np.setdiff1d(np.flatnonzero(known), held_out)
        if penalty is None:  # chosen on the first fold
            penalty = _choose_penalty(images, targets, rows, held_out[known[held_out]])
        head = _fit_head(images[rows], targets[rows], penalty)
        with torch.inference_mode():
            log_odds[held_out] = head(images[held_out]).cpu().numpy()
        heads.append(head)
    return heads, log_odds


def _choose_penalty(images: Tensor, targets: Tensor, rows: Rows, held_out: Rows) -> float:
    """The penalty whose head, fitted on ``rows``, has the smallest loss on ``held_out``."""

    def loss(penalty: float) -> float:
        head = _fit_head(images[rows], targets[rows], penalty)
        with torch.inference_mode():
            logits = head(images[held_out])
        return functional.binary_cross_entropy_with_logits(logits, targets[held_out]).item()

    return min(_PENALTIES, key=loss) if len(held_out) else _PENALTIES[-1]


def _fit_head(images: Tensor, targets: Tensor, penalty: float) -> QualityHead:
    """Minimise the cross-entropy of the shares of voters [N, Q] under an L2 penalty, by L-BFGS on all records at once.

    Each feature is scaled to variance 1 for the fit, so that the penalty is the same for all; the scale becomes part of
    the LayerNorm's weights.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights, overwritten below, must not move other heads' numbers
        head = QualityHead(images.shape[1], targets.shape[1]).to(images.device).requires_grad_(False)
    normed = functional.layer_norm(images, images.shape[1:])
    mean, deviation = normed.mean(dim=0), normed.std(dim=0, correction=0).clamp(min=1e-6)
    inputs = (normed - mean) / deviation
    weight = torch.zeros_like(head.linear.weight).requires_grad_()
    bias = torch.logit(targets.mean(dim=0).clamp(0.001, 0.999)).requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = functional.linear(inputs, weight, bias)
        loss = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(targets)
        loss = loss + penalty * weight.square().sum() / 2
        loss.backward()
        return loss

    optimiser.step(closure)
    head.norm.weight.copy_(1 / deviation)
    head.norm.bias.copy_(-mean / deviation)
    head.linear.weight.copy_(weight.detach())
    head.linear.bias.copy_(bias.detach())
    return head.eval()
