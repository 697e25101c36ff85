"""What the embedded server answers, against NumPy, through the live ensemble."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from serving.server import EmbeddedTriton
from tests.serving.tiny_repository import SIDE, TEXT_MODEL, TOKEN_VALUES, ask, expected_answer
from vizwiz_client.contract import tensors


def question(seed: int, length: int, batch: int = 1) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)
    return image, generator.integers(0, len(TOKEN_VALUES), (batch, length), dtype=np.int32)


@pytest.mark.parametrize("batch", [1, 3, tensors.MAX_BATCH_SIZE])
def test_the_ensemble_answers_as_numpy_does(client: InferenceServerClient, batch: int) -> None:
    image, tokens = question(seed=batch, length=8, batch=batch)
    result = ask(client, image, tokens)
    answer = expected_answer(image, tokens)
    np.testing.assert_array_equal(result.as_numpy("answer"), answer)
    np.testing.assert_array_equal(result.as_numpy("answer_type"), -answer)
    np.testing.assert_array_equal(result.as_numpy("answerable"), answer[:, :1])
    np.testing.assert_array_equal(result.as_numpy("head_id"), np.full((batch, 1), 7))
    assert {spec.name: result.as_numpy(spec.name).dtype for spec in tensors.HEAD_OUTPUTS} == {
        spec.name: spec.dtype for spec in tensors.HEAD_OUTPUTS
    }


def test_labels_and_values_of_the_best_come_through_the_ensemble(client: InferenceServerClient) -> None:
    image, tokens = np.zeros((1, SIDE, SIDE, 3), np.uint8), np.array([[2, 3]], np.int32)  # text features 13, 26, 39
    result = ask(client, image, tokens, top=2)
    assert result.as_numpy("answer").tolist() == [[b"39.000000:2:green", b"26.000000:1:blue: dark"]]
    assert result.as_numpy("answer_type").tolist() == [[b"-13.000000:0:other", b"-26.000000:1:number"]]


def test_requests_of_all_shapes_that_meet_in_a_batch_each_get_their_own_answer(client: InferenceServerClient) -> None:
    questions = [question(seed, length, batch) for seed, (length, batch) in enumerate([(8, 1), (8, 2), (16, 1)] * 4)]
    before = executions(client)
    with ThreadPoolExecutor(len(questions)) as pool:
        results = list(pool.map(lambda pair: ask(client, *pair), questions))
    for (image, tokens), result in zip(questions, results, strict=True):
        np.testing.assert_array_equal(result.as_numpy("answer"), expected_answer(image, tokens))
    assert executions(client) - before < len(questions) / 2, "they were not batched: the test proves nothing"


def test_a_request_that_fails_leaves_the_others_of_its_batch_alone(client: InferenceServerClient) -> None:
    questions = [question(seed, length=8) for seed in range(6)]
    questions[2][1][0, 5] = len(TOKEN_VALUES)  # no such token
    before = executions(client)

    def outcome(pair: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]) -> Any:
        try:
            return ask(client, *pair).as_numpy("answer")
        except InferenceServerException as error:
            return error.message()

    with ThreadPoolExecutor(len(questions)) as pool:
        outcomes = list(pool.map(outcome, questions))
    assert "out of data bounds" in outcomes.pop(2)
    del questions[2]
    for (image, tokens), answer in zip(questions, outcomes, strict=True):
        np.testing.assert_array_equal(answer, expected_answer(image, tokens))
    assert executions(client) - before < 5, "they were not batched: the test proves nothing"


def executions(client: InferenceServerClient) -> int:
    """How many batches the text encoder has run."""
    statistics = client.get_inference_statistics(TEXT_MODEL, as_json=True)
    return int(statistics["model_stats"][0].get("execution_count", 0))


def test_spaces_in_paths_do_not_matter(tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton starts its Python backend by a command line that it splits at spaces."""
    spaced = tmp_path / "my models"
    shutil.copytree(tiny_repository, spaced)
    (tmp_path / "my tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "my tmp"))
    with EmbeddedTriton(spaced) as server, InferenceServerClient(server.grpc_url) as client:
        assert client.is_model_ready(tensors.ENSEMBLE)
