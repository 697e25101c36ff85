"""Exports of heads with and without quality, and what parity refuses of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import head_graph, publish
from export.comparison import TOLERANCES, Comparison, OutputError, ParityError, ToleranceError
from export.graph_builder import GraphBuilder
from export.head_graph import write_head
from export.inventory import check_repository
from export.parity import ParityResult, compare_answers
from export.publish import DEFAULT_KIND, HEAD_KIND, export_run, model_names
from export.targets import open_graph
from serving.repository import ensemble_config, read_config
from tests.export import faults
from tests.export.conftest import ISSUES, WORDING, reverse_labels, snapshot
from training.model import ClipEnsemble, Predictor
from training.run import Run
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tensors import ENSEMBLE

pytestmark = pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)


def head_of(folder: Path, run: Run) -> Path:
    return folder / model_names(run).head


def test_a_head_with_quality_is_published_with_its_labels_and_thresholds(both: Path, quality_run: Run) -> None:
    head, config = head_of(both, quality_run), read_config(both / ENSEMBLE)
    assert (head / "quality.txt").read_text(encoding="utf-8").splitlines() == ISSUES
    assert [output.name for output in config.output] == ["answer", "answer_type", "answerable", "head_id", "quality"]
    assert json.loads(config.parameters["wording"].string_value) == WORDING
    golden = json.loads((head / "golden.json").read_text(encoding="utf-8"))["expected"]
    assert sorted(each["issue"] for each in golden["quality"]) == sorted(ISSUES)
    rows = json.loads((head / "parity.json").read_text(encoding="utf-8"))["comparisons"]
    assert [row["inputs"] for row in rows if row["tensor"] == "quality"] == ["random", "drawn"]
    assert json.loads((head / "made_from.json").read_text(encoding="utf-8"))["quality_issues"] == len(ISSUES)
    assert check_repository(both, quality_run) == []


def test_a_head_without_quality_is_published_as_before(published: Path, run: Run) -> None:
    config = read_config(published / ENSEMBLE)
    assert [output.name for output in config.output] == [spec.name for spec in tensors.HEAD_OUTPUTS]
    assert tensors.WORDING_PARAMETER not in config.parameters
    assert not (head_of(published, run) / "quality.txt").exists()
    assert check_repository(published, run) == []


def test_a_rollout_writes_the_ensemble_that_export_writes(
    published: Path, both: Path, run: Run, quality_run: Run
) -> None:
    """Outputs, labels' names and thresholds come and go with the head."""
    assert ensemble_config(both, model_names(quality_run).head) == read_config(both / ENSEMBLE)
    assert ensemble_config(both, model_names(run).head) == read_config(published / ENSEMBLE)


def test_labels_of_another_order_are_reported_though_their_digests_are_right(
    both: Path, quality_run: Run, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(both, tmp_path / "triton_models"))
    reverse_labels(head_of(own, quality_run))
    (problem,) = check_repository(own, quality_run)
    assert problem.startswith(
        f"{head_of(own, quality_run) / 'quality.txt'} is not the list of {quality_run.folder.name}"
    )


def mean_of_log_odds(graph: GraphBuilder, log_odds: list[str], *, keepdims: int) -> str:
    """The fault of a graph that averages before the sigmoid."""
    mean = graph.add("Mean", *log_odds)
    return mean if keepdims else graph.add("Squeeze", mean, graph.constant([1]))


def first_head_alone(graph: GraphBuilder, log_odds: list[str], *, keepdims: int) -> str:
    """The fault of a graph that does not average."""
    return log_odds[0] if keepdims else graph.add("Squeeze", log_odds[0], graph.constant([1]))


def compared(published: Path, run: Run, quality_run: Run, ensemble: ClipEnsemble, path: Path) -> list[Comparison]:
    """Compare the graph of ``ensemble`` with the heads of ``quality_run``, on the features of published encoders."""
    names = model_names(run)
    result = ParityResult.load(published / names.images[0], published / names.texts[0], DEFAULT_KIND)
    assert result is not None
    write_head(ensemble, "0" * 12, path)
    graph = open_graph(path, HEAD_KIND)
    return compare_answers(graph, quality_run.load_ensemble(), [(result.images, result.texts)], TOLERANCES["int8"])


@pytest.mark.parametrize(
    "fault",
    [
        None,
        faults.swapped_issues,
        faults.missing_quality_head,
        faults.unscaled_quality_features,
        faults.unshifted_quality_features,
        mean_of_log_odds,
        first_head_alone,
    ],
)
def test_a_wrong_quality_is_refused_at_every_precision(
    fault: Any, published: Path, run: Run, quality_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = quality_run.load_ensemble()
    if fault in (mean_of_log_odds, first_head_alone):
        monkeypatch.setattr(head_graph, "_log_odds_of_mean", fault)
    elif fault:
        ensemble = faults.with_fault(ensemble, lambda ensemble: fault(ensemble.members[0]))
    rows = compared(published, run, quality_run, ensemble, tmp_path / "head.onnx")
    for tolerance in TOLERANCES.values():
        refused = {row.tensor for row in rows if not row.passes(tolerance)}
        assert refused == ({"quality"} if fault else set())


def no_quality(predictor: Predictor) -> None:
    """The quality heads are forgotten."""
    predictor.quality = predictor.quality[:0]


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (faults.swapped_issues, ToleranceError, "quality on random inputs: error "),
        (no_quality, OutputError, "has 4 outputs, expected answer, answer_type, answerable, head_id, quality;"),
    ],
)
def test_a_wrong_quality_publishes_nothing(
    fault: Callable[[Any], None],
    error: type[ParityError],
    message: str,
    own: Path,
    quality_run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def damaged(ensemble: ClipEnsemble, digest: str, path: Path) -> None:
        write_head(faults.with_fault(ensemble, lambda ensemble: fault(ensemble.members[0])), digest, path)

    monkeypatch.setattr(publish, "write_head", damaged)
    before = snapshot(own)
    with pytest.raises(error, match=message):
        export_run(quality_run, "no/such/clip.pt", own)
    assert snapshot(own) == before
