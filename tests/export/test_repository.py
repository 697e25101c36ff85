from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export import repository, store
from export.repository import Names, Sizes
from export.targets import Target
from training.storage import file_digest
from vizwiz_client.contract import tensors

TARGET = Target("portable", "fp32")
SIZES = Sizes(side=64, features=32, answers=7, types=4)
NAMES = Names("clip_image_a", "clip_text_b", "gated_head_c")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"graph")
    for labels in ("answer.txt", "answer_type.txt"):
        (path.parents[1] / labels).write_text("mug\n")
    return path


def dims(tensors_: object) -> dict[str, tuple[int, list[int]]]:
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in tensors_}  # type: ignore[attr-defined]


def test_encoders_and_head_state_their_tensors(graph: Path) -> None:
    image = repository.image_config("clip_image_a", SIZES, graph, TARGET)
    text = repository.text_config("clip_text_b", SIZES, graph, TARGET)
    head = repository.head_config("gated_head_c", SIZES, graph)
    assert dims(image.input) == {"image": (pb.TYPE_UINT8, [64, 64, 3])}
    assert dims(image.output) == {"image_features": (pb.TYPE_FP32, [32])}
    assert dims(text.input) == {"tokens": (pb.TYPE_INT32, [-1])}
    assert dims(text.output) == {"text_features": (pb.TYPE_FP32, [32])}
    assert dims(head.input) == {"image_features": (pb.TYPE_FP32, [32]), "text_features": (pb.TYPE_FP32, [32])}
    assert dims(head.output) == {
        "answer": (pb.TYPE_FP32, [7]),
        "answer_type": (pb.TYPE_FP32, [4]),
        "answerable": (pb.TYPE_FP32, [1]),
        "head_id": (pb.TYPE_INT64, [1]),
    }
    assert [output.label_filename for output in head.output] == ["answer.txt", "answer_type.txt", "", ""]


def test_models_are_served_by_the_native_backend_as_well(graph: Path) -> None:
    """No ``runtime``, no ``KIND_GPU``, one instance: the same tree serves on a GPU and on a CPU."""
    for config in (
        repository.image_config("name", SIZES, graph, TARGET),
        repository.text_config("name", SIZES, graph, TARGET),
        repository.head_config("name", SIZES, graph),
    ):
        assert (config.backend, config.runtime) == ("onnxruntime", "")
        assert [(group.kind, group.count) for group in config.instance_group] == [(pb.ModelInstanceGroup.KIND_AUTO, 1)]
        assert config.max_batch_size == tensors.MAX_BATCH_SIZE
        assert config.HasField("dynamic_batching")
        assert config.parameters["model_sha256"].string_value == file_digest(graph)


@pytest.mark.parametrize(("precision", "accelerated"), [("fp32", []), ("bf16", ["openvino"]), ("int8", ["openvino"])])
def test_a_cpu_target_asks_for_its_accelerator(precision: str, accelerated: list[str], graph: Path) -> None:
    config = repository.text_config("name", SIZES, graph, Target("portable", precision))
    accelerators = config.optimization.execution_accelerators.cpu_execution_accelerator
    assert [accelerator.name for accelerator in accelerators] == accelerated
    assert all(accelerator.parameters["inference_precision"] == "bf16" for accelerator in accelerators)


def test_the_ensemble_ties_the_three_together() -> None:
    config = repository.ensemble_config(NAMES, SIZES)
    assert dims(config.input) == {"image": (pb.TYPE_UINT8, [64, 64, 3]), "tokens": (pb.TYPE_INT32, [-1])}
    assert dims(config.output)["answer"] == (pb.TYPE_FP32, [-1])
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["clip_image_a", "clip_text_b", "gated_head_c"]
    made = {tensor for step in steps for tensor in step.output_map.values()} | {"image", "tokens"}
    assert {tensor for step in steps for tensor in step.input_map.values()} <= made
    assert {output.name for output in config.output} <= made
    assert config.parameters["contract_version"].string_value == str(tensors.CONTRACT_VERSION)


def test_a_configuration_survives_its_text(tmp_path: Path) -> None:
    config = repository.ensemble_config(NAMES, SIZES)
    repository.write_config(tmp_path / "config.pbtxt", config)
    assert text_format.Parse((tmp_path / "config.pbtxt").read_text(encoding="utf-8"), pb.ModelConfig()) == config


def test_committing_replaces_one_file(tmp_path: Path) -> None:
    store.commit(tmp_path, repository.ensemble_config(NAMES, SIZES))
    store.commit(tmp_path, repository.ensemble_config(Names("clip_image_a", "clip_text_b", "gated_head_d"), SIZES))
    ensemble = tmp_path / tensors.ENSEMBLE
    assert sorted(path.name for path in ensemble.iterdir()) == ["1", "config.pbtxt"]
    assert "gated_head_d" in (ensemble / "config.pbtxt").read_text(encoding="utf-8")
