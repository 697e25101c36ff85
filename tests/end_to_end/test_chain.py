"""Fit, export, serve, ask: the real parts in a row, compared with PyTorch at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import LiveServer
from training.backbone import clip_tokenize, load_clip
from training.dataset import read_split
from vizwiz_client import VizwizClient
from vizwiz_client.contract.image import load_photo

ASKED = 12


@pytest.fixture(scope="module")
def asked(live_server: LiveServer) -> list[tuple[Path, str]]:
    """Photos and questions that the head was not fitted on."""
    split = read_split(live_server.data, "val", limit=ASKED)
    return [(path, record.question) for path, record in zip(split.photo_paths(), split.records, strict=True)]


@torch.inference_mode()
def test_answers_are_what_pytorch_gives(live_server: LiveServer, asked: list[tuple[Path, str]]) -> None:
    """The reference is CLIP's own preprocessing, tokenizer and encoders, and the head as it was fitted."""
    model = load_clip(live_server.run.clips[0]["source"])
    preprocess = model.reference_preprocess()
    images = model.model.encode_image(torch.stack([preprocess(load_photo(path)) for path, _ in asked]))
    texts = model.model.encode_text(clip_tokenize([question for _, question in asked]))
    predicted = live_server.run.load_ensemble()([(texts, images)])
    probabilities, best = predicted.answer.sort(dim=1, descending=True)

    with VizwizClient(live_server.grpc_url) as client:
        answers = client.ask_batch(asked, top=3)
    for row, answer in enumerate(answers):
        expected = [live_server.run.answers[index] for index in best[row, :3].tolist()]
        assert [candidate.answer for candidate in answer.candidates] == expected
        assert answer.confidence == pytest.approx(probabilities[row, 0].item(), abs=1e-4)
        assert answer.answer_type == live_server.run.answer_types[int(predicted.answer_type[row].argmax())]
        assert answer.answerable == pytest.approx(predicted.answerable[row].item(), abs=1e-4)
        assert f"gated_head_{answer.head_id}" == live_server.head
    assert len({answer.answer for answer in answers}) > 3  # a head that separates nothing would prove nothing


def test_the_command_prints_what_the_library_returns(live_server: LiveServer, asked: list[tuple[Path, str]]) -> None:
    photo, question = asked[0]
    command = [str(Path(sys.executable).with_name("vizwiz-client")), "ask", str(photo), question, "--json"]
    completed = subprocess.run([*command, "--url", live_server.grpc_url], check=True, capture_output=True, text=True)
    with VizwizClient(live_server.grpc_url) as client:
        answer = client.ask(photo, question).to_dict()
    printed = json.loads(completed.stdout)
    for record in (printed, answer):  # each request has its own
        assert record.pop("request_id")
        assert record.pop("timings")
    assert printed == {"photo": str(photo), "question": question, **answer}
