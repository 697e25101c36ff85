"""Token ids that no tokenizer gives, sent to a live server among good requests."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from export.publish import model_names
from tests.serving.processes import Command
from training.run import Run
from vizwiz_client.contract import tensors, tokenizer
from vizwiz_client.contract.image import load_photo, to_pixels

pytestmark = pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)


def test_a_request_with_ids_outside_the_vocabulary_fails_no_other(published: Path, run: Run) -> None:
    """It is answered as if its ids were the nearest valid ones; the ensemble unloads, and the server stops."""
    head = published / model_names(run).head
    expected = json.loads((head / "golden.json").read_text(encoding="utf-8"))["expected"]
    image = to_pixels(load_photo((head / "golden.jpg").read_bytes()), run.clips[0]["image_size"])[None]
    good = tokenizer.pad(tokenizer.tokenize("What is this?").ids, tensors.CONTEXT_LENGTH)[None]
    outside, nearest = good.copy(), good.copy()
    outside[0, 1:4], nearest[0, 1:4] = (-1, 49408, 2**31 - 1), (0, 49407, 49407)
    with Command(published) as served:
        with InferenceServerClient(served.addresses["grpc"]) as client:
            answers = ask_at_once(client, image, [good, outside, good, nearest] * 8)
        for ids in (0, 2):
            for answer in answers[ids::4]:
                assert answer[0, 0] == pytest.approx(expected["answerable"], abs=5e-5)
        np.testing.assert_allclose(answers[1::4], answers[3::4], rtol=0, atol=5e-5)
        served.process.terminate()
        assert served.end().splitlines()[-1] == "serving: stopped"  # within 30 s
        assert served.process.returncode == 0


def ask_at_once(client: InferenceServerClient, image: Any, questions: list[Any]) -> list[Any]:
    """The answerability that the ensemble gives each of ``questions`` int32 [1, 77], all in flight together."""
    done: queue.Queue[tuple[int, Any]] = queue.Queue()
    for number, ids in enumerate(questions):
        inputs = [InferInput("image", list(image.shape), "UINT8"), InferInput("tokens", list(ids.shape), "INT32")]
        for tensor, array in zip(inputs, (image, ids), strict=True):
            tensor.set_data_from_numpy(array)
        client.async_infer(
            tensors.ENSEMBLE,
            inputs,
            lambda result, error, number=number: done.put((number, error or result)),
            client_timeout=60,
        )
    results = dict(done.get(timeout=60) for _ in questions)
    failed = {number: result for number, result in results.items() if isinstance(result, Exception)}
    assert failed == {}
    return [results[number].as_numpy("answerable") for number in range(len(questions))]
