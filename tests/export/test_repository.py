"""Triton configurations, and the files of a repository."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from export import repository, triton_config
from export.targets import GraphKind, Precision
from export.triton_config import ModelNames, Sizes
from serving.repository import read_config
from training.artifacts import file_digest, workspace
from vizwiz_client.contract import tensors

TARGET = GraphKind("portable", "fp32")
SIZES = Sizes(image_size=64, embed_dim=32, answers=7, answer_types=4)
NAMES = ModelNames("clip_image_a", "clip_text_b", "gated_head_c")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"graph")
    for labels in ("answer.txt", "answer_type.txt"):
        (path.parents[1] / labels).write_text("mug\n")
    return path


def test_the_native_backend_serves_the_models_too(graph: Path) -> None:
    """No ``runtime``, no ``KIND_GPU``, one instance: the same repository serves on a GPU and on a CPU."""
    for config in (
        triton_config.image_config("name", SIZES, graph, TARGET),
        triton_config.text_config("name", SIZES, graph, TARGET),
        triton_config.head_config("name", SIZES, graph, TARGET),
    ):
        assert (config.backend, config.runtime) == ("onnxruntime", "")
        assert [(group.kind, group.count) for group in config.instance_group] == [(pb.ModelInstanceGroup.KIND_AUTO, 1)]
        assert config.parameters["model_sha256"].string_value == file_digest(graph)


@pytest.mark.parametrize(("precision", "accelerators"), [("fp32", []), ("bf16", ["openvino"]), ("int8", ["openvino"])])
def test_a_cpu_target_requests_its_accelerator(precision: Precision, accelerators: list[str], graph: Path) -> None:
    config = triton_config.text_config("name", SIZES, graph, GraphKind("portable", precision))
    requested = config.optimization.execution_accelerators.cpu_execution_accelerator
    assert [accelerator.name for accelerator in requested] == accelerators


def test_each_step_of_the_ensemble_reads_what_an_earlier_one_wrote() -> None:
    config = triton_config.ensemble_config(NAMES, SIZES)
    written = {tensor.name for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        assert {*step.input_map.values()} <= written
        written |= {*step.output_map.values()}
    assert {output.name for output in config.output} <= written


@pytest.mark.parametrize("parameters", [{}, {tensors.DEMO_PARAMETER: "true", tensors.WORDING_PARAMETER: '{"a": 1}'}])
def test_head_and_ensemble_have_the_parameters_for_clients(parameters: dict[str, str], graph: Path) -> None:
    head = triton_config.head_config("name", SIZES, graph, TARGET, parameters)
    for config in (head, triton_config.ensemble_config(NAMES, SIZES, parameters)):
        of_clients = {tensors.DEMO_PARAMETER, tensors.WORDING_PARAMETER} & {*config.parameters}
        assert {name: config.parameters[name].string_value for name in of_clients} == parameters


def test_no_model_bounds_its_queue_or_has_a_timeout(graph: Path) -> None:
    """Beside another step, ``max_queue_size`` makes Triton 2.51 lose requests or crash; a timeout stalls it."""
    for config in (
        triton_config.image_config("name", SIZES, graph, TARGET),
        triton_config.text_config("name", SIZES, graph, TARGET),
        triton_config.head_config("name", SIZES, graph, TARGET),
    ):
        policy = config.dynamic_batching.default_queue_policy
        assert config.HasField("dynamic_batching")
        assert (policy.default_timeout_microseconds, policy.max_queue_size) == (0, 0)


def test_a_commit_replaces_one_file_of_the_ensemble(tmp_path: Path) -> None:
    for head in ("gated_head_c", "gated_head_d"):
        repository.commit(
            tmp_path, triton_config.ensemble_config(replace(NAMES, head=head), SIZES), tmp_path / ".staging"
        )
    ensemble = tmp_path / tensors.ENSEMBLE
    assert sorted(path.name for path in ensemble.iterdir()) == ["1", "config.pbtxt"]
    assert read_config(ensemble).ensemble_scheduling.step[-1].model_name == "gated_head_d"


def test_a_first_commit_on_a_full_disk_leaves_no_ensemble_without_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(folder: Path, config: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(repository, "write_config", no_space)
    with pytest.raises(OSError, match="No space left"):
        repository.commit(tmp_path / "models", triton_config.ensemble_config(NAMES, SIZES), tmp_path / "staging")
    assert not (tmp_path / "models").exists()


def test_only_the_stale_files_of_killed_exports_are_removed(tmp_path: Path) -> None:
    (tmp_path / "models" / tensors.ENSEMBLE).mkdir(parents=True)
    abandoned = tmp_path / f".models.{'a' * 16}.partial"
    abandoned.mkdir()
    half_written = tmp_path / "models" / tensors.ENSEMBLE / ".config.pbtxt.partial"
    half_written.touch()
    with workspace(tmp_path / "models.cuda") as theirs, repository.lock(tmp_path / "models"):
        assert not abandoned.exists()
        assert not half_written.exists()
        assert theirs.is_dir()
