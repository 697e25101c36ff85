"""The parity gate: what it measures, and which faults of real graphs it refuses at which precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from export import clip_graph, publish
from export.clip_graph import write_image_encoder, write_text_encoder
from export.comparison import (
    TOLERANCES,
    Comparison,
    Features,
    OutputError,
    ParityError,
    ShapeError,
    ToleranceError,
    compare_encoder,
    compare_features,
    compare_probabilities,
    log_error,
)
from export.head_graph import write_head
from export.parity import check_parity, compare_answers, encode_texts, parity_table, require_tolerance
from export.parity_inputs import Inputs, draw_golden_photo, drawn_inputs, random_inputs, run_inputs
from export.publish import DEFAULT_KIND, HEAD_KIND, export_run
from export.targets import Graph, GraphKind, execution, open_graph
from tests.export import faults
from tests.export.conftest import snapshot
from training.backbone import FrozenClip
from training.dataset import read_split
from training.model import ClipEnsemble
from training.run import Run
from vizwiz_client.contract import tensors, tokenizer
from vizwiz_client.contract.tensors import TensorSpec

REFUSED_EVERYWHERE = [
    faults.missing_image_block,
    faults.missing_text_block,
    faults.swapped_heads,
    faults.swapped_channels,
]
FP32 = TOLERANCES["fp32"]
vit = pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
REFUSED_IN_FP32 = [faults.scaled_image_matrix, faults.scaled_text_matrix, faults.scaled_text_projection]


class Bench(NamedTuple):
    """What graphs are compared with."""

    model: FrozenClip
    ensemble: ClipEnsemble
    head: Graph
    image: Path  # the graphs as they should be
    text: Path
    inputs: list[Inputs]


@pytest.fixture(scope="module")
def bench(run: Run, tiny_clip: FrozenClip, some_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The reference, the graph of its fitted head, and the three sets of inputs."""
    place = tmp_path_factory.mktemp("bench")
    ensemble, path = run.load_ensemble(), place / "head.onnx"
    write_head(ensemble, "0" * 12, path)
    own = run_inputs(tiny_clip, read_split(some_photos, "val"))
    assert own is not None
    inputs = [random_inputs(tiny_clip), drawn_inputs(tiny_clip, draw_golden_photo()), own]
    write_image_encoder(tiny_clip, DEFAULT_KIND, image := place / "image.onnx")
    write_text_encoder(tiny_clip, DEFAULT_KIND, text := place / "text.onnx")
    return Bench(tiny_clip, ensemble, open_graph(path, HEAD_KIND), image, text, inputs)


def compared(bench: Bench, place: Path, fault: Callable[[Any], None] | None = None) -> list[Comparison]:
    """Compare the encoders, one of which is exported with ``fault``, with the reference; ties as int8 allows them."""
    image, text = bench.image, bench.text
    if fault:
        model = replace(bench.model, model=faults.with_fault(bench.model.model, fault))
        if "text" in fault.__name__:
            write_text_encoder(model, DEFAULT_KIND, text := place / "text.onnx")
        else:
            write_image_encoder(model, DEFAULT_KIND, image := place / "image.onnx")
    result = check_parity(image, text, DEFAULT_KIND, bench.model, bench.inputs)
    answers = compare_answers(bench.head, bench.ensemble, [(result.images, result.texts)], TOLERANCES["int8"])
    return [*result.comparisons, *answers]


def refused_at(comparisons: list[Comparison]) -> list[str]:
    return [name for name, tolerance in TOLERANCES.items() if not all(row.passes(tolerance) for row in comparisons)]


@pytest.mark.material
def test_the_graphs_as_they_are_pass(bench: Bench, tmp_path: Path) -> None:
    comparisons = compared(bench, tmp_path)
    assert refused_at(comparisons) == []
    assert {row.inputs for row in comparisons} == {"random", "drawn", "val"}
    assert [row.rows for row in comparisons if row.inputs == "val"] == [50] * 5


@pytest.mark.material
@pytest.mark.parametrize("fault", REFUSED_EVERYWHERE)
def test_gross_faults_are_refused_at_every_precision(
    fault: Callable[[Any], None], bench: Bench, tmp_path: Path
) -> None:
    comparisons = compared(bench, tmp_path, fault)
    assert refused_at(comparisons) == ["fp32", "fp16", "bf16", "int8"]


def test_questions_that_are_cut_where_the_shortest_of_a_batch_ends_are_refused(bench: Bench, tmp_path: Path) -> None:
    model = onnx.load(bench.text)
    (cut,) = [node for node in model.graph.node if node.op_type == "ReduceMax"]
    cut.op_type = "ReduceMin"
    onnx.save(model, tmp_path / "text.onnx")
    comparisons = compared(bench._replace(text=tmp_path / "text.onnx"), tmp_path)
    assert refused_at(comparisons) == ["fp32", "fp16", "bf16", "int8"]


@pytest.mark.parametrize("noise", [0, 1e-7])
def test_photos_or_questions_that_are_all_alike_pass(noise: float) -> None:
    """As black photos are: the centred error is relative to the drawn inputs then."""
    generator = np.random.default_rng(0)
    drawn, one = generator.normal(size=(5, 8)), generator.normal(size=(1, 8))
    own = np.repeat(one, 5, axis=0) + noise * generator.normal(size=(5, 8))
    features = {"drawn": Features(drawn, drawn), "val": Features(own, own + 1e-6)}
    assert [row.passes(FP32) for row in compare_features(features, features)] == [True] * 4


def test_the_text_encoder_is_compared_at_every_length_that_matters(bench: Bench) -> None:
    """Each around the lengths that the graph cuts questions to, with no longer question beside it."""
    seen, graph = set(), open_graph(bench.text, DEFAULT_KIND)

    def watched(inputs: Any) -> Any:
        seen.add(int((inputs["tokens"] == tokenizer.END_OF_TEXT).argmax(axis=1).max()) + 1)
        return graph(inputs)

    encode_texts(watched, bench.model, bench.inputs[0])
    assert seen >= {7, 8, 9, 15, 16, 17, 31, 32, 33, 76, 77}


def test_lengths_come_back_in_their_order(bench: Bench) -> None:
    inputs = bench.inputs[0]
    mixed = replace(inputs, questions=inputs.questions[::-1], reference_questions=inputs.reference_questions.flip(0))
    features = encode_texts(open_graph(bench.text, DEFAULT_KIND), bench.model, mixed)
    assert compare_encoder("random", "text_features", features).passes(FP32)


@pytest.mark.parametrize("mean", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5)], ids=["none", "another model's"])
def test_a_wrong_mean_is_refused_at_every_precision(
    mean: tuple[float, ...], bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = clip_graph.normalize
    monkeypatch.setattr(clip_graph, "normalize", lambda graph, image, _, std: original(graph, image, mean, std))
    assert refused_at(compared(bench, tmp_path, lambda model: None)) == ["fp32", "fp16", "bf16", "int8"]


@pytest.mark.material
@pytest.mark.parametrize("fault", REFUSED_IN_FP32)
def test_one_matrix_times_1_01_is_refused_in_fp32(fault: Callable[[Any], None], bench: Bench, tmp_path: Path) -> None:
    assert "fp32" in refused_at(compared(bench, tmp_path, fault))


def test_a_refused_export_publishes_nothing(
    run: Run, tiny_clip: FrozenClip, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = publish.write_image_encoder

    def write(model: FrozenClip, target: GraphKind, path: Path) -> None:
        original(replace(model, model=faults.with_fault(model.model, faults.scaled_image_matrix)), target, path)

    monkeypatch.setattr(publish, "write_image_encoder", write)
    monkeypatch.setattr(publish, "EXPORT_FORMAT", "faulty")  # other names: nothing is taken as published
    before = snapshot(published)
    with pytest.raises(ParityError) as error:
        export_run(run, tiny_clip, published)
    message = str(error.value)
    assert (
        "the portable-fp32 graphs differ from PyTorch by more than the tolerances, so nothing was published: "
        "image_features on random inputs: error" in message
    )
    assert f"(allowed {FP32.relative_error:g})" in message
    assert snapshot(published) == before
    assert [path.name for path in published.parent.iterdir()] == ["triton_models"]


@pytest.mark.material
def test_the_report_holds_every_comparison_and_what_is_allowed(published: Path) -> None:
    report = json.loads((next(published.glob("gated_head_*")) / "parity.json").read_text(encoding="utf-8"))
    assert report["target"] == "portable-fp32"
    assert report["passed"] is True
    assert report["allowed"] == vars(FP32)
    outputs = ["answer", "answer_type", "answerable"]
    sets = ["random", "drawn", "val"]
    features = [(inputs, tensor) for inputs in sets for tensor in ("image_features", "text_features")]
    answers = [(inputs, tensor) for inputs in sets for tensor in outputs]
    assert [(row["inputs"], row["tensor"]) for row in report["comparisons"]] == features + answers
    errors = [row["relative_error"] for row in report["comparisons"]]
    assert all(0 <= error <= FP32.relative_error for error in errors)
    assert any(errors), "nothing was computed twice"
    assert all((row["log_error"] is None) == (row["tensor"] not in outputs) for row in report["comparisons"])
    assert all((row["cosine_error"] is None) == (row["tensor"] in outputs) for row in report["comparisons"])


GOOD = Comparison("val", "answer", 10, 1e-5, 1e-10, 1e-4, 1e-6, 0, 1.0, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"relative_error": 2e-4},
        {"relative_error": float("nan")},
        {"cosine_error": 2e-6},
        {"cosine_error": float("nan")},
        {"centred_error": 2e-2},
        {"log_error": 2e-4},
        {"log_error": float("nan")},
        {"top1_differ": 1},
    ],
)
def test_each_measure_can_fail_alone(change: dict[str, Any]) -> None:
    require_tolerance([GOOD], FP32, "x")
    bad = replace(GOOD, **change)
    with pytest.raises(ToleranceError, match="answer on val inputs"):
        require_tolerance([GOOD, bad], FP32, "x")
    assert parity_table([GOOD, bad], FP32, "x", execution(DEFAULT_KIND)).count("FAILED") == 1


def test_scale_is_seen_where_cosine_is_blind() -> None:
    reference = np.random.default_rng(0).normal(size=(4, 8))
    row = compare_encoder("random", "image_features", Features(reference, reference * 1.01))
    assert row.cosine_error is not None
    assert row.cosine_error < 1e-6
    assert row.relative_error == pytest.approx(0.01, rel=1e-3)


def test_inputs_that_come_out_alike_are_seen_below_what_they_share() -> None:
    """One feature is large for every input, as in real CLIPs; the others tell them apart, and are gone."""
    reference = np.random.default_rng(0).normal(size=(16, 8))
    reference[:, 0] = 1000
    got = reference.copy()
    got[:, 1:] = 0
    scale = np.abs(reference - reference.mean(axis=0)).max()
    row = compare_encoder("drawn", "image_features", Features(reference, got), centred_scale=scale)
    assert row.relative_error < 5e-3
    assert row.centred_error is not None
    assert row.centred_error > 0.9


def probabilities(got: Any, reference: Any, spec: TensorSpec = tensors.ANSWER) -> Comparison:
    """Compared with a reference that the features' rounding does not change."""
    got, reference = (np.array(each, np.float64) for each in (got, reference))
    return compare_probabilities("val", spec, got, reference, reference, FP32)


@pytest.mark.parametrize(("gap", "differ"), [(0.5e-4, 0), (2e-4, 1)])
def test_the_best_answer_may_differ_only_where_two_were_tied(gap: float, differ: int) -> None:
    reference = np.array([[0.5, 0.5 - gap, 0.1], [0.1, 0.5, 0.2]])
    got = reference[:, [1, 0, 2]].copy()
    got[1] = reference[1]
    row = probabilities(got, reference)
    assert (row.top1_differ, row.top1_agree, row.top5_agree) == (differ, 0.5, 1.0)


def test_a_nan_is_never_equal() -> None:
    reference = np.ones((2, 3))
    got = np.array([[1, 1, 1], [1, np.nan, 1]])
    assert not compare_encoder("val", "image_features", Features(reference, got)).passes(TOLERANCES["int8"])
    row = replace(probabilities(got, reference), relative_error=0.0, top1_differ=0)
    assert not row.passes(TOLERANCES["int8"])  # by the logarithms alone


@pytest.mark.parametrize(
    ("got", "reference"),
    [(0.0, 8.4e-9), (0.0, 1e-300), (1.0000001, 1 - 1e-12), (6.10948e-6, 6.14417e-6), (1 - 2e-7, 1 - 4e-7)],
)
def test_what_fp32_rounds_is_equal(got: float, reference: float) -> None:
    """Nothing is divided by the largest of a few inputs. Some of these are what ONNX Runtime's sigmoid gives."""
    row = probabilities([[got]] * 3, [[reference]] * 3, tensors.ANSWERABLE)
    assert (row.cosine_error, row.log_error) == (None, 0)
    assert row.passes(FP32)


@pytest.mark.parametrize(("got", "reference"), [(2.3e-6, 6.1e-6), (1 - 2.3e-6, 1 - 6.1e-6), (0.0, 1e-5)])
def test_a_fault_is_seen_where_the_sigmoid_is_sure(got: float, reference: float) -> None:
    """Log-odds of -12 that should be -13: 4e-6 of a probability, and at no precision rounding."""
    row = probabilities([[got]], [[reference]], tensors.ANSWERABLE)
    assert row.relative_error < FP32.relative_error
    assert not any(row.passes(tolerance) for tolerance in TOLERANCES.values())


def test_a_fault_is_seen_in_answers_that_are_never_likely() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 50)) * 3
    logits[:, 7] = -30
    wrong = logits.copy()
    wrong[:, 7] = -25
    right, wrong = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in (logits, wrong))
    row = probabilities(wrong, right)
    assert row.relative_error < 1e-9
    assert not any(row.passes(tolerance) for tolerance in TOLERANCES.values())


def test_the_logarithm_of_an_answer_is_compared_down_to_fp32s_smallest_number() -> None:
    tiny = float(np.finfo(np.float32).tiny)
    assert log_error(np.array([[1, 0.0]]), np.array([[1, tiny]]), tiny) == 0
    assert log_error(np.array([[1, 1e-30]]), np.array([[1, 2e-30]]), tiny) > FP32.log_error


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (3, OutputError, "the head's graph has 3 outputs, expected answer, answer_type, answerable, head_id"),
        (4, ShapeError, "answer on random inputs has shape"),
    ],
)
def test_outputs_and_shapes_have_errors_of_their_own(
    outputs: int, error: type[ParityError], message: str, bench: Bench
) -> None:
    features = {"random": Features(*[np.zeros((4, bench.model.embed_dim), np.float32)] * 2)}

    def head(inputs: Any) -> list[Any]:
        return [output[:, :-1] for output in bench.head(inputs)[:outputs]]

    with pytest.raises(error, match=message):
        compare_answers(head, bench.ensemble, [(features, features)], FP32)
