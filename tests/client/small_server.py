"""A real Triton that is up in two seconds: the smallest repository that the client accepts, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from serving.server import EmbeddedTriton
from tests.serving import tiny_repository
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tokenizer import END_OF_TEXT


def write_small_repository(folder: Path) -> None:
    """The tiny repository, but for all of CLIP's tokens, with a contract version, and without a delay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_repository, "TOKEN_VALUES", np.arange(END_OF_TEXT + 1, dtype=np.float32) % 7)
        patch.setattr(tiny_repository, "QUEUE_DELAY_US", 0)
        tiny_repository.write_repository(folder)

    def versioned(config: Any) -> None:
        config.parameters[tensors.CONTRACT_VERSION_PARAMETER].string_value = str(tensors.CONTRACT_VERSION)

    tiny_repository.change_config(folder / tensors.ENSEMBLE, versioned)


QUALITY_WORDING = {"sure_from": 0.4, "advise_from": {"blur": 0.6, "framing": 0.6, "dark": 0.6}}
QUALITY_ISSUES = ("blur", "framing", "dark")


def add_quality(repository: Path, head: str) -> None:
    """Give ``head`` and the ensemble the output ``quality``: the more red, green or blue, the more of an issue."""
    path = repository / head / "1" / "model.onnx"
    model = onnx.load(path)
    model.graph.node.extend(
        [
            helper.make_node("Sub", ["image_features", "middle"], ["above_middle"]),
            helper.make_node("Div", ["above_middle", "middle"], ["logits"]),
            helper.make_node("Sigmoid", ["logits"], ["quality"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([64], np.float32), "middle"))
    shape = ["batch", len(QUALITY_ISSUES)]
    model.graph.output.append(helper.make_tensor_value_info("quality", TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    (repository / head / "quality.txt").write_text("".join(f"{issue}\n" for issue in QUALITY_ISSUES))

    def to_head(config: Any) -> None:
        output = config.output.add(name="quality", data_type=model_config_pb2.TYPE_FP32, dims=[len(QUALITY_ISSUES)])
        output.label_filename = "quality.txt"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        config.parameters[tensors.MODEL_DIGEST_PARAMETER].string_value = digest

    def to_ensemble(config: Any) -> None:
        config.output.add(name="quality", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
        config.ensemble_scheduling.step[-1].output_map["quality"] = "quality"
        config.parameters[tensors.WORDING_PARAMETER].string_value = json.dumps(QUALITY_WORDING)

    tiny_repository.change_config(repository / head, to_head)
    tiny_repository.change_config(repository / tensors.ENSEMBLE, to_ensemble)


class SmallServer(EmbeddedTriton):
    """The server, with more flags of ``tritonserver``, and its processes at the test's mercy."""

    def __init__(self, repository: Path, flags: Sequence[str] = (), **options: Any) -> None:
        super().__init__(repository, **options)
        self._flags = flags

    def _arguments(self, *arguments: Any, **options: Any) -> list[str]:
        return [*super()._arguments(*arguments, **options), *self._flags]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the clock of the server (SIGSTOP).

        Its models' processes go on: had they been stopped too, Triton 2.51 would take them for dead when it wakes up
        with a request in its hands, and abort now and then (boost::interprocess::lock_exception).
        """
        os.kill(self._process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 60
        try:
            while not self._stands_still():
                assert self._process.is_alive(), "the server ended"
                assert time.monotonic() < deadline, "the server does not stand still"
                time.sleep(0.01)
            yield
        finally:
            with suppress(ProcessLookupError):  # it was killed meanwhile
                os.kill(self._process.pid, signal.SIGCONT)

    def _stands_still(self) -> bool:
        """Whether the signal has reached every thread: proc_pid_stat(5), the state after the name in brackets."""
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/stat")
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)

    def kill(self) -> None:
        """Kill it, as the kernel does when memory is short, and do not restart it."""
        self._stopping.set()
        self._process.kill()
