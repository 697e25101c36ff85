from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export import repository, store
from export.repository import Names, Sizes
from export.targets import Target
from training.artifacts import file_digest, workspace
from vizwiz_client.contract import tensors

TARGET = Target("portable", "fp32")
SIZES = Sizes(side=64, features=32, answers=7, types=4)
NAMES = Names("clip_image_a", "clip_text_b", "gated_head_c", "preprocess_d")


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
    head = repository.head_config("gated_head_c", SIZES, graph, TARGET)
    assert dims(image.input) == {"image": (pb.TYPE_UINT8, [64, 64, 3])}
    assert dims(image.output) == {"image_features": (pb.TYPE_FP32, [32])}
    assert dims(text.input) == {"tokens": (pb.TYPE_INT32, [77])}
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
        repository.head_config("name", SIZES, graph, TARGET),
    ):
        assert (config.backend, config.runtime) == ("onnxruntime", "")
        assert [(group.kind, group.count) for group in config.instance_group] == [(pb.ModelInstanceGroup.KIND_AUTO, 1)]
        assert config.max_batch_size == tensors.MAX_BATCH_SIZE
        assert config.HasField("dynamic_batching")
        assert config.parameters["model_sha256"].string_value == file_digest(graph)


def test_a_cpu_target_asks_for_its_accelerator(graph: Path) -> None:
    asked = {}
    for precision in ("fp32", "bf16", "int8"):
        config = repository.text_config("name", SIZES, graph, Target("portable", precision))  # type: ignore[arg-type]
        accelerators = config.optimization.execution_accelerators.cpu_execution_accelerator
        asked[precision] = {each.name: dict(each.parameters) for each in accelerators}
    bf16 = {"inference_precision": "bf16"}
    assert asked == {"fp32": {}, "bf16": {"openvino": bf16}, "int8": {"openvino": bf16}}


@pytest.mark.parametrize(
    ("target", "preferred"),
    [
        (Target("portable", "fp32"), [8]),
        (Target("portable", "bf16"), [8]),
        (Target("portable", "fp16"), []),
        (Target("fused", "fp16"), []),
    ],
)
def test_a_cpu_takes_eight_at_once(target: Target, preferred: list[int], graph: Path) -> None:
    for make in (repository.image_config, repository.text_config):
        assert list(make("name", SIZES, graph, target).dynamic_batching.preferred_batch_size) == preferred
    assert list(repository.head_config("name", SIZES, graph, TARGET).dynamic_batching.preferred_batch_size) == []


@pytest.mark.parametrize(("variant", "nice"), [("portable", "5"), ("fused", "")])
def test_on_a_cpu_the_text_encoder_yields_to_the_image_encoder(variant: str, nice: str, graph: Path) -> None:
    target = Target(variant, "bf16" if nice else "fp16")  # type: ignore[arg-type]
    configs = [make("name", SIZES, graph, target) for make in (repository.text_config, repository.image_config)]
    assert [config.parameters["nice"].string_value for config in configs] == [nice, ""]


def test_the_ensembles_tie_their_steps_together() -> None:
    raw, config = repository.ensemble_configs(NAMES, SIZES)
    assert (raw.name, config.name) == (tensors.RAW_ENSEMBLE, tensors.ENSEMBLE)  # the commit point comes last
    assert dims(config.input) == {"image": (pb.TYPE_UINT8, [64, 64, 3]), "tokens": (pb.TYPE_INT32, [77])}
    assert dims(raw.input) == {"image_bytes": (pb.TYPE_STRING, [1]), "question": (pb.TYPE_STRING, [1])}
    assert dims(raw.output) == {**dims(config.output), "error": (pb.TYPE_STRING, [1])}
    for each, models in ((config, ["clip_image_a", "clip_text_b", "gated_head_c"]), (raw, ["preprocess_d"])):
        steps = each.ensemble_scheduling.step
        assert [step.model_name for step in steps][: len(models)] == models
        made = {tensor for step in steps for tensor in step.output_map.values()} | {
            tensor.name for tensor in each.input
        }
        assert {tensor for step in steps for tensor in step.input_map.values()} <= made
        assert {output.name for output in each.output} <= made
        assert dims(each.output)["answer"] == (pb.TYPE_FP32, [-1])
        assert each.parameters["contract_version"].string_value == str(tensors.CONTRACT_VERSION)
    assert list(raw.ensemble_scheduling.step)[1:] == list(config.ensemble_scheduling.step)


def test_only_preprocess_bounds_its_queue_and_none_sets_a_time_limit(graph: Path) -> None:
    """Beside another step, ``max_queue_size`` makes Triton 2.51 lose requests or crash; a time limit stalls it."""
    (graph.parent / "model.py").write_text("")
    preprocess = repository.preprocess_config("preprocess_d", SIZES, graph.parent / "model.py")
    others = [
        repository.image_config("name", SIZES, graph, TARGET),
        repository.text_config("name", SIZES, graph, TARGET),
        repository.head_config("name", SIZES, graph, TARGET),
    ]
    for config in (preprocess, *others):
        policy = config.dynamic_batching.default_queue_policy
        assert config.HasField("dynamic_batching")
        assert policy.default_timeout_microseconds == 0
        assert policy.max_queue_size == (repository.MAX_PHOTOS_WAITING if config is preprocess else 0)
    for config in repository.ensemble_configs(NAMES, SIZES):
        first, second = list(config.ensemble_scheduling.step)[:2]
        if first.model_name == "preprocess_d":  # alone in its turn
            assert {*second.input_map.values()} <= {*first.output_map.values()}


def test_a_configuration_survives_its_text(tmp_path: Path) -> None:
    for config in repository.ensemble_configs(NAMES, SIZES):
        repository.write_config(tmp_path / "config.pbtxt", config)
        assert text_format.Parse((tmp_path / "config.pbtxt").read_text(encoding="utf-8"), pb.ModelConfig()) == config


def test_committing_replaces_one_file_of_each_ensemble(tmp_path: Path) -> None:
    store.commit(tmp_path, repository.ensemble_configs(NAMES, SIZES))
    store.commit(tmp_path, repository.ensemble_configs(replace(NAMES, head="gated_head_d"), SIZES))
    for name in tensors.ENSEMBLES:
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["1", "config.pbtxt"]
        assert "gated_head_d" in (tmp_path / name / "config.pbtxt").read_text(encoding="utf-8")


def test_only_what_killed_exports_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "models" / tensors.ENSEMBLE).mkdir(parents=True)
    abandoned = tmp_path / f".models.{'a' * 16}.partial"
    abandoned.mkdir()
    half_written = tmp_path / "models" / tensors.ENSEMBLE / ".config.pbtxt.partial"
    half_written.touch()
    with workspace(tmp_path / "models.cuda") as theirs, store.locked(tmp_path / "models"):
        assert not abandoned.exists()
        assert not half_written.exists()
        assert theirs.is_dir()
