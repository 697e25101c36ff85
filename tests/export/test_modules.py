"""The encoders' nodes against the ``clip`` package's own modules, on the same weights, layer for layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from export import modules
from export.graphs import GraphBuilder
from export.modules import attention_layers
from export.operators import Operators
from export.tolerances import FP32
from training.backbone import FrozenClip, clip_tokenize, normalise_pixels
from vizwiz_client.contract.tensors import TOKEN_LENGTHS
from vizwiz_client.contract.tokenizer import END_OF_TEXT, START_OF_TEXT

QUESTIONS = ["what is this?", "what color is the mug on the left?", "is it on"]

Write = Callable[..., "str | tuple[str, ...]"]  # writes nodes: operators, names of inputs -> names of outputs
Compute = Callable[..., list[Tensor]]


def write(nodes: Write, inputs: list[Tensor], path: Path) -> Path:
    """``nodes`` as a graph at ``path``, of inputs called x0, x1, ... like ``inputs``."""
    graph, names = GraphBuilder(), [f"x{place}" for place in range(len(inputs))]
    outputs = nodes(Operators(graph), *names)
    kinds = [onnx.helper.np_dtype_to_tensor_dtype(x.numpy().dtype) for x in inputs]
    given = [onnx.helper.make_tensor_value_info(*each, x.shape) for *each, x in zip(names, kinds, inputs, strict=True)]
    wanted = [onnx.ValueInfoProto(name=name) for name in ([outputs] if isinstance(outputs, str) else outputs)]
    graph.save(path, given, wanted)
    return path


@pytest.fixture
def compute(tmp_path: Path) -> Compute:
    """Run nodes on inputs."""

    def run(nodes: Write, *inputs: Tensor) -> list[Tensor]:
        path = write(nodes, list(inputs), tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {f"x{place}": x.numpy() for place, x in enumerate(inputs)})
        return [torch.from_numpy(output) for output in outputs]

    return run


def assert_close(got: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(got, reference, rtol=0, atol=FP32.relative_error * reference.abs().max().item())


@torch.inference_mode()
def test_image_encoder(tiny_clip: FrozenClip, compute: Compute) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (3, tiny_clip.image_size, tiny_clip.image_size, 3), dtype=torch.uint8)
    (features,) = compute(lambda ops, x: modules.image_encoder(ops, tiny_clip.model.visual, x), pixels)
    assert_close(features, tiny_clip.model.encode_image(normalise_pixels(pixels)))


@torch.inference_mode()
@pytest.mark.parametrize("length", TOKEN_LENGTHS)
def test_a_question_has_one_feature_at_every_length(tiny_clip: FrozenClip, length: int, compute: Compute) -> None:
    tokens = clip_tokenize(QUESTIONS)
    used = int((tokens > 0).sum(dim=1).max())
    if used > length:
        tokens = tokens[[0, 2]]
    nodes = text_nodes(tiny_clip)
    assert_close(compute(nodes, tokens[:, :length].int())[0], tiny_clip.model.encode_text(tokens))


@torch.inference_mode()
def test_two_questions_have_two_features(tiny_clip: FrozenClip, compute: Compute) -> None:
    (features,) = compute(text_nodes(tiny_clip), clip_tokenize(QUESTIONS).int())
    assert (features[0] - features[1]).abs().max() > 0.01 * features.abs().max()


def text_nodes(clip: FrozenClip) -> Write:
    return lambda ops, x: modules.text_encoder(ops, clip.model, x)


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16])
def test_the_end_is_found_by_a_runtime_of_any_precision(kind: int, tmp_path: Path) -> None:
    """A runtime that computes in 16 bits takes those for the fp32 of a graph: so does this test."""
    rows = [
        [START_OF_TEXT, END_OF_TEXT, 0, 0],
        [START_OF_TEXT, 5, END_OF_TEXT, 0],
        [START_OF_TEXT, END_OF_TEXT - 2, 7, END_OF_TEXT],
        [START_OF_TEXT, END_OF_TEXT, 5, END_OF_TEXT],  # a question may hold the end token's text
    ]
    tokens = nn.functional.pad(torch.tensor(rows, dtype=torch.int32), (0, 73))
    path = write(
        lambda ops, x, length: modules.first_end(ops.graph, x, length), [tokens, torch.tensor(77)], tmp_path / "m"
    )
    model = onnx.load(path)
    (cast,) = (node for node in model.graph.node if node.op_type == "Cast")
    cast.attribute[0].i = kind
    (ends,) = ReferenceEvaluator(model).run(None, {"x0": tokens.numpy(), "x1": np.array(77)})
    assert ends.tolist() == [1, 2, 3, 1]


@torch.inference_mode()
def test_every_block_of_the_transformers(tiny_vit: FrozenClip, compute: Compute) -> None:
    torch.manual_seed(0)
    for transformer, causal in ((tiny_vit.model.visual.transformer, False), (tiny_vit.model.transformer, True)):
        norm = nn.LayerNorm(transformer.width)
        for source in transformer.resblocks:
            assert (source.attn_mask is not None) is causal

            def nodes(
                ops: Operators, x: str, normed: str, source: nn.Module = source, norm: nn.LayerNorm = norm
            ) -> tuple[str, str]:
                length = ops.graph.constant(9) if source.attn_mask is not None else ""
                return modules.block(ops, source, x, normed, normed, norm, causal=length)

            x = torch.randn(2, 9, transformer.width)
            after, residual = compute(nodes, x, source.ln_1(x))
            expected = source(x.transpose(0, 1)).transpose(0, 1)
            assert_close(residual, expected)
            assert_close(after, norm(expected))


@torch.inference_mode()
def test_the_last_block_is_the_whole_block_at_one_position(tiny_vit: FrozenClip, compute: Compute) -> None:
    torch.manual_seed(0)
    source, norm = tiny_vit.model.visual.transformer.resblocks[0], nn.LayerNorm(128)
    x = torch.randn(2, 9, 128)
    normed = source.ln_1(x)
    after, _ = compute(lambda ops, *names: modules.block(ops, source, *names, norm), x[:, :1], normed[:, :1], normed)
    assert_close(after, norm(source(x.transpose(0, 1)).transpose(0, 1))[:, :1])


@torch.inference_mode()
@pytest.mark.parametrize("tiny_clip", [(1, 2, 1, 1)], ids=["resnet"], indirect=True)
def test_every_layer_of_the_resnet(tiny_clip: FrozenClip, compute: Compute) -> None:
    torch.manual_seed(0)
    visual = tiny_clip.model.visual
    for norm in visual.modules():
        if isinstance(norm, nn.BatchNorm2d):  # a fresh one changes nothing, so a lost one would not show
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias)
    x = torch.rand(2, 3, 64, 64)
    (stem,) = compute(lambda ops, x: modules.stem(ops.graph, visual, x), x)
    for number in (1, 2, 3):
        convolution, norm = getattr(visual, f"conv{number}"), getattr(visual, f"bn{number}")
        x = torch.relu(norm(convolution(x)))
    x = visual.avgpool(x)
    assert_close(stem, x)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        for source in layer:
            (got,) = compute(lambda ops, x, source=source: modules.bottleneck(ops.graph, source, x), x)
            x = source(x)
            assert_close(got, x)
    (pooled,) = compute(lambda ops, x: modules.attention_pool(ops, visual.attnpool, x), x)
    assert_close(pooled, visual.attnpool(x))


def test_attentions_are_counted(tiny_clip: FrozenClip) -> None:
    family = 1 if hasattr(tiny_clip.model.visual, "attnpool") else 3
    assert attention_layers(tiny_clip.model.visual) == family
    assert attention_layers(tiny_clip.model.transformer) == 2


def test_writing_changes_no_weight(tiny_clip: FrozenClip, tmp_path: Path) -> None:
    before = {name: weights.clone() for name, weights in tiny_clip.model.state_dict().items()}
    pixels = torch.zeros(1, tiny_clip.image_size, tiny_clip.image_size, 3, dtype=torch.uint8)
    write(lambda ops, x: modules.image_encoder(ops, tiny_clip.model.visual, x), [pixels], tmp_path / "image")
    write(text_nodes(tiny_clip), [torch.zeros(1, 8, dtype=torch.int32)], tmp_path / "text")
    assert all(torch.equal(before[name], weights) for name, weights in tiny_clip.model.state_dict().items())
