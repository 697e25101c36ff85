"""The response cache: repeated questions cost nothing, and no two requests are ever taken for one another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.conftest import LiveServer
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tokenizer import pad, tokenize

Ids = npt.NDArray[np.int32]


@pytest.fixture
def client(live_server: LiveServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(live_server.grpc_url) as client:
        yield client


@pytest.fixture
def text_model(live_server: LiveServer) -> Path:
    (folder,) = live_server.repository.glob(f"{tensors.TEXT_ENCODER_PREFIX}*")
    return folder


def encode(client: InferenceServerClient, model: Path, ids: Ids) -> npt.NDArray[np.float32]:
    """The text features of ``ids`` [B, T], from the server."""
    tokens = InferInput("tokens", list(ids.shape), "INT32")
    result = client.infer(model.name, [tokens.set_data_from_numpy(ids)], client_timeout=60)
    features: npt.NDArray[np.float32] = result.as_numpy("text_features")
    return features


def rows(*questions: str) -> Ids:
    return np.stack([pad(tokenize(question).ids, tensors.CONTEXT_LENGTH) for question in questions])


def cache_hits(client: InferenceServerClient, model: Path) -> int:
    statistics = client.get_inference_statistics(model.name, as_json=True)["model_stats"][0]["inference_stats"]
    return int(statistics["cache_hit"].get("count", 0))


def test_the_text_encoder_alone_has_a_cache(live_server: LiveServer) -> None:
    """On an ensemble it returned wrong answers, also after the head was replaced."""
    cached = []
    for path in live_server.repository.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
        cached += [config.name] * config.response_cache.enable
    assert [name.startswith(tensors.TEXT_ENCODER_PREFIX) for name in cached] == [True]


def test_a_question_that_was_asked_before_is_not_encoded_again(client: InferenceServerClient, text_model: Path) -> None:
    ids = rows("is this question in the cache already")
    first, before = encode(client, text_model, ids), cache_hits(client, text_model)
    for _ in range(3):
        np.testing.assert_array_equal(encode(client, text_model, ids), first)
    assert cache_hits(client, text_model) - before == 3


@pytest.mark.parametrize("shape", [(2, 8), (1, 16), (1, 154), (14, 11), (77, 2)])
def test_the_same_bytes_in_another_shape_are_refused(
    shape: tuple[int, int], client: InferenceServerClient, text_model: Path
) -> None:
    """The cache does not look at shapes: two requests of the same bytes and another shape would share an answer."""
    ids = rows("what is this?", "what color is it?")
    encode(client, text_model, ids)
    part = np.ascontiguousarray(ids.reshape(-1)[: shape[0] * shape[1]].reshape(shape))
    with pytest.raises(InferenceServerException, match=r"unexpected shape for input 'tokens'|batch-size must be <= 64"):
        encode(client, text_model, part)


def test_special_tokens_in_questions_confuse_nothing(client: InferenceServerClient, text_model: Path) -> None:
    """``<|startoftext|>`` in a question puts a start token inside a row, as the next row of a batch would begin."""
    groups = [
        ("what is this?", "what color is it?"),
        ("what is this?<|endoftext|><|startoftext|>what color is it?",),
        ("what is this?<|endoftext|>", "<|startoftext|>what color is it?"),
        ("<|startoftext|>", "<|endoftext|>"),
        ("what is this? <|startoftext|> what color is it? <|startoftext|> is it on?",),
        ("what color is it?", "what is this?"),
        ("what is this?",),
    ]
    session = onnxruntime.InferenceSession(text_model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    seen: dict[bytes, bytes] = {}
    for group in (*groups, *reversed(groups)):  # the second time from the cache
        ids = rows(*group)
        got = encode(client, text_model, ids)
        np.testing.assert_allclose(got, session.run(None, {"tokens": ids})[0], atol=1e-4)
        seen[ids.tobytes()] = got.tobytes()
    assert len(seen) == len(groups)
