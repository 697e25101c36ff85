"""The encoders' graphs of both families, in every variant and precision, against the ``clip`` package."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from export.clip_graph import check_operators, first_end, write_image_encoder, write_text_encoder
from export.comparison import TOLERANCES
from export.graph_builder import MICROSOFT, GraphBuilder, GraphError
from export.targets import GRAPH_KINDS, GraphKind, Precision, open_graph
from training.backbone import FrozenClip, clip_tokenize, normalise_pixels
from vizwiz_client.contract.tokenizer import END_OF_TEXT, START_OF_TEXT

QUESTIONS = ["what is this?", "is it on?", "what color is the mug"]
kinds = pytest.mark.parametrize("kind", GRAPH_KINDS, ids=lambda kind: kind.name)
Array = npt.NDArray[np.float32]


def assert_within(got: Array, reference: torch.Tensor, kind: GraphKind) -> None:
    expected, tolerance = reference.numpy(), TOLERANCES[kind.precision]
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= tolerance.relative_error * np.abs(expected).max()
    cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert (1 - cosine).max() <= tolerance.cosine_error + 3e-7  # rounding of this line


@pytest.fixture(scope="module")
def text_graphs(tiny_clip: FrozenClip, tmp_path_factory: pytest.TempPathFactory) -> dict[GraphKind, Path]:
    folder = tmp_path_factory.mktemp("text")
    paths = {kind: folder / f"{kind.name}.onnx" for kind in GRAPH_KINDS}
    for kind, path in paths.items():
        write_text_encoder(tiny_clip, kind, path)
    return paths


@kinds
def test_the_image_encoder_gives_what_clip_gives(kind: GraphKind, tiny_clip: FrozenClip, tmp_path: Path) -> None:
    write_image_encoder(tiny_clip, kind, tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(
        0, 256, (3, tiny_clip.image_size, tiny_clip.image_size, 3), dtype=np.uint8
    )
    graph = open_graph(tmp_path / "model.onnx", kind)
    with torch.inference_mode():
        reference = tiny_clip.model.encode_image(normalise_pixels(torch.from_numpy(pixels)))
    assert_within(graph({"image": pixels})[0], reference, kind)
    assert_within(graph({"image": pixels[:1]})[0], reference[:1], kind)


@kinds
@pytest.mark.parametrize("length", [8, 16, 77])
def test_the_text_encoder_gives_what_clip_gives(
    length: int, kind: GraphKind, tiny_clip: FrozenClip, text_graphs: dict[GraphKind, Path]
) -> None:
    """Beside a question that fills ``length`` positions, so that the graph computes as many."""
    tokens = clip_tokenize([*QUESTIONS, "a " * (length - 2)])
    graph = open_graph(text_graphs[kind], kind)
    with torch.inference_mode():
        reference = tiny_clip.model.encode_text(tokens)
    assert_within(graph({"tokens": tokens.int().numpy()})[0], reference, kind)


@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16])
def test_the_end_is_found_by_a_runtime_of_any_precision(dtype: int, tmp_path: Path) -> None:
    """A runtime that computes in 16 bits replaces the graph's fp32 by those: so does this test."""
    rows = [
        [START_OF_TEXT, END_OF_TEXT, 0, 0],
        [START_OF_TEXT, 5, END_OF_TEXT, 0],
        [START_OF_TEXT, END_OF_TEXT - 2, 7, END_OF_TEXT],
        [START_OF_TEXT, END_OF_TEXT, 5, END_OF_TEXT],  # a question may hold the end token's text
    ]
    ids = nn.functional.pad(torch.tensor(rows, dtype=torch.int32), (0, 73)).numpy()
    graph = GraphBuilder()
    end = first_end(graph, "ids", graph.constant(77))
    source = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT32, ids.shape)
    graph.save(tmp_path / "model.onnx", [source], [onnx.ValueInfoProto(name=end)])
    model = onnx.load(tmp_path / "model.onnx")
    (cast,) = (node for node in model.graph.node if node.op_type == "Cast")
    cast.attribute[0].i = dtype
    assert ReferenceEvaluator(model).run(None, {"ids": ids})[0].tolist() == [1, 2, 3, 1]


@kinds
def test_the_graph_is_written_in_the_operators_of_its_variant(
    kind: GraphKind, text_graphs: dict[GraphKind, Path]
) -> None:
    graph = onnx.load(text_graphs[kind]).graph
    operators = Counter((node.domain, node.op_type) for node in graph.node)
    fused = operators[MICROSOFT, "MultiHeadAttention"], operators[MICROSOFT, "QuickGelu"]
    assert fused == ((2, 2) if kind.variant == "fused" else (0, 0))
    if kind.variant == "portable":
        assert {domain for domain, _ in operators} == {""}
    skips = operators[MICROSOFT, "SkipLayerNormalization"]
    assert skips == (4 if kind == GraphKind("fused", "fp32") else 0)


@pytest.mark.parametrize("variant", ["portable", "fused"])
def test_fp16_is_half_the_size_and_its_norms_are_in_fp32(variant: str, text_graphs: dict[GraphKind, Path]) -> None:
    full, half = (text_graphs[GraphKind(variant, precision)] for precision in ("fp32", "fp16"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    assert_sensitive_operators_take_fp32(half, {"LayerNormalization", "ArgMax"})


@pytest.mark.parametrize("variant", ["portable", "fused"])
def test_fp16_images_are_accumulated_in_fp32(variant: str, tiny_clip: FrozenClip, tmp_path: Path) -> None:
    write_image_encoder(tiny_clip, GraphKind(variant, "fp16"), tmp_path / "model.onnx")
    resnet = hasattr(tiny_clip.model.visual, "attnpool")
    assert_sensitive_operators_take_fp32(tmp_path / "model.onnx", {"ReduceMean" if resnet else "LayerNormalization"})


def assert_sensitive_operators_take_fp32(path: Path, some: set[str]) -> None:
    """Operators that overflow fp16 take fp32, and the graph at ``path`` has ``some`` of them."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    sensitive = [n for n in model.graph.node if n.op_type in ("LayerNormalization", "Softmax", "ArgMax", "ReduceMean")]
    assert some <= {node.op_type for node in sensitive}
    for node in sensitive:
        assert types[node.input[0]] == onnx.TensorProto.FLOAT


def count_int8(path: Path) -> tuple[int, int]:
    """Numbers of products with an int8 matrix, and of int8 activations that they multiply."""
    graph = onnx.load(path).graph
    constants = {constant.name for constant in graph.initializer}
    dequantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in graph.node if node.op_type == "MatMul" and dequantized.get(node.input[1]) in constants]
    return len(products), len({node.input[0] for node in products} & set(dequantized))


def test_int8_quantises_the_text_encoders_weights_alone(text_graphs: dict[GraphKind, Path]) -> None:
    assert count_int8(text_graphs[GraphKind("portable", "int8")]) == (13, 0)  # six in each block, and the projection


def test_int8_quantises_the_image_encoders_weights_and_activations(tiny_vit: FrozenClip, tmp_path: Path) -> None:
    write_image_encoder(tiny_vit, GraphKind("portable", "int8"), tmp_path / "model.onnx")
    # query, key and value share their activation, except in the last of three blocks
    assert count_int8(tmp_path / "model.onnx") == (19, 14)


@pytest.mark.parametrize("tiny_clip", [(1, 1, 1, 1)], ids=["resnet"], indirect=True)
def test_a_resnets_int8_image_encoder_is_its_bf16_one(tiny_clip: FrozenClip, tmp_path: Path) -> None:
    precisions: tuple[Precision, ...] = ("bf16", "int8")
    for precision in precisions:
        write_image_encoder(tiny_clip, GraphKind("portable", precision), tmp_path / precision)
    assert (tmp_path / "bf16").read_bytes() == (tmp_path / "int8").read_bytes()


def test_an_attention_that_is_not_fused_is_refused(text_graphs: dict[GraphKind, Path]) -> None:
    portable = onnx.load(text_graphs[GraphKind("portable", "fp32")]).graph
    with pytest.raises(GraphError, match="0 of 2 attentions are fused"):
        check_operators(portable.node, GraphKind("fused", "fp32"), 2)


def test_a_portable_graph_of_other_operators_is_refused(text_graphs: dict[GraphKind, Path]) -> None:
    fused = onnx.load(text_graphs[GraphKind("fused", "fp32")]).graph
    with pytest.raises(GraphError, match=r"com\.microsoft::MultiHeadAttention, com\.microsoft::QuickGelu"):
        check_operators(fused.node, GraphKind("portable", "fp32"), 2)


def test_exporting_leaves_the_reference_as_it_was(tiny_clip: FrozenClip, tmp_path: Path) -> None:
    before = {name: weights.clone() for name, weights in tiny_clip.model.state_dict().items()}
    write_image_encoder(tiny_clip, GraphKind("fused", "fp16"), tmp_path / "image.onnx")
    write_text_encoder(tiny_clip, GraphKind("fused", "fp16"), tmp_path / "text.onnx")
    after = tiny_clip.model.state_dict()
    assert all(torch.equal(weights, after[name]) for name, weights in before.items())


@kinds
def test_ids_outside_the_vocabulary_are_clamped(kind: GraphKind, text_graphs: dict[GraphKind, Path]) -> None:
    """One graph computes both sides, so both round equally."""
    outside, nearest = np.zeros((2, 3, 77), np.int32)
    outside[:, 0] = nearest[:, 0] = 49406
    outside[:, 1:4], nearest[:, 1:4] = 320, 320
    outside[:, 2], nearest[:, 2] = (-1, 49408, 2**31 - 1), (0, 49407, 49407)
    outside[:, 4] = nearest[:, 4] = 49407
    graph = open_graph(text_graphs[kind], kind)
    features = graph({"tokens": outside})[0]
    np.testing.assert_array_equal(features, graph({"tokens": nearest})[0])
    assert np.isfinite(features).all()
    assert (features[0] != features[1]).any()


def test_questions_of_mixed_lengths_in_one_batch(text_graphs: dict[GraphKind, Path], tiny_clip: FrozenClip) -> None:
    """Ids after the first end token change nothing, and a question without one is answered too."""
    questions = [" ".join(["mug"] * words) for words in (1, 5, 13, 14, 30, 75)]
    tokens = clip_tokenize(questions).int().numpy()
    graph = open_graph(text_graphs[GraphKind("portable", "fp32")], GraphKind("portable", "fp32"))
    together = graph({"tokens": tokens})[0]
    with torch.inference_mode():
        reference = tiny_clip.model.encode_text(torch.from_numpy(tokens))
    assert_within(together, reference, GraphKind("portable", "fp32"))
    behind = tokens.copy()
    behind[0, 40:] = 49407  # more ends, later than the first
    assert_within(graph({"tokens": behind})[0], torch.from_numpy(together), GraphKind("portable", "fp32"))
    no_end = np.full((1, 77), 320, np.int32)
    assert graph({"tokens": no_end})[0].shape == together[:1].shape
