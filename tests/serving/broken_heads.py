"""Heads of the tiny repository, and the faults that a rollout refuses."""

from __future__ import annotations

import hashlib
import json
import operator
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.serving.tiny_repository import HEAD, change_config, write_head

HEADS = {  # name -> its answers, and the factor of its values
    HEAD: (("red", "blue: dark", "green"), 1.0),
    "gated_head_00000000beef": (("mug", "cup", "spoon", "fork", "a: b"), 2.0),
    "gated_head_0123456789ab": (("1", "2", "3", "4", "5", "6", "7"), 0.5),
}
FIRST, SECOND, THIRD = HEADS


def nan_weights(repository: Path) -> None:
    shutil.rmtree(repository / SECOND)
    write_head(repository / SECOND, HEADS[SECOND][0], float("nan"))


def damaged_graph(repository: Path) -> None:
    graph = repository / SECOND / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")


def other_labels(repository: Path) -> None:
    labels = repository / SECOND / "answer.txt"
    labels.write_text("".join(f"{label}\n" for label in reversed(HEADS[SECOND][0])))


def _set_digest(repository: Path, parameter: str, digest: str) -> None:
    change_config(repository / SECOND, lambda config: config.parameters[parameter].__setattr__("string_value", digest))


def other_labels_with_their_digest(repository: Path) -> None:
    other_labels(repository)
    labels = repository / SECOND / "answer.txt"
    _set_digest(repository, "labels_sha256_answer.txt", hashlib.sha256(labels.read_bytes()).hexdigest())


def wrong_digest_of_labels(repository: Path) -> None:
    _set_digest(repository, "labels_sha256_answer.txt", "0" * 64)


def change_golden(repository: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = repository / SECOND / "golden.json"
    golden = json.loads(path.read_text())
    edit(golden["expected"])
    path.write_text(json.dumps(golden))


def other_answer(repository: Path) -> None:
    change_golden(repository, lambda expected: operator.setitem(expected["candidates"][0], "confidence", 0.5))


def other_type(repository: Path) -> None:
    change_golden(repository, lambda expected: operator.setitem(expected["answer_types"][1], "confidence", 0.5))


def no_golden_request(repository: Path) -> None:
    (repository / SECOND / "golden.jpg").unlink()


def other_head_id(repository: Path) -> None:
    other = repository / "gated_head_ffffffffffff"
    write_head(other, *HEADS[SECOND])
    shutil.copy(other / "1" / "model.onnx", repository / SECOND / "1" / "model.onnx")
    _set_digest(repository, "model_sha256", hashlib.sha256((other / "1" / "model.onnx").read_bytes()).hexdigest())


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (nan_weights, "'mug' has the probability nan"),
    (damaged_graph, "model.onnx is damaged or replaced: its SHA-256 differs from the recorded one"),
    (other_labels, "'mug' has the probability"),
    (other_labels_with_their_digest, "'mug' has the probability"),
    (wrong_digest_of_labels, "answer.txt is damaged or replaced"),
    (other_answer, "'mug' has the probability"),
    (other_type, "'number' has the probability"),
    (no_golden_request, f"{SECOND} has no usable golden request (FileNotFoundError"),
    (other_head_id, "the head that answered is ffffffffffff"),
]
