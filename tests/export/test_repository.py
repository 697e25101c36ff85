"""Triton configurations, and the files of a repository."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

import serving.repository
from export import repository, triton_config
from export.targets import GraphKind, Precision
from export.triton_config import ClipSizes, HeadSizes
from serving.repository import ENCODERS_KEY, MADE_FROM_FILE, RepositoryError, ensemble_config, read_config, write_config
from training.artifacts import file_digest, workspace
from vizwiz_client.contract import tensors

TARGET = GraphKind("portable", "fp32")
CLIP = ClipSizes(image_size=64, embed_dim=32)
HEAD_NAME = "gated_head_c"
HEAD = HeadSizes(embed_dims=(32,), answers=7, answer_types=4)


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
        triton_config.image_config("name", CLIP, graph, TARGET),
        triton_config.text_config("name", CLIP, graph, TARGET),
        triton_config.head_config("name", HEAD, graph, TARGET),
    ):
        assert (config.backend, config.runtime) == ("onnxruntime", "")
        assert [(group.kind, group.count) for group in config.instance_group] == [(pb.ModelInstanceGroup.KIND_AUTO, 1)]
        assert config.parameters["model_sha256"].string_value == file_digest(graph)


@pytest.mark.parametrize(("precision", "accelerators"), [("fp32", []), ("bf16", ["openvino"]), ("int8", ["openvino"])])
def test_a_cpu_target_requests_its_accelerator(precision: Precision, accelerators: list[str], graph: Path) -> None:
    config = triton_config.text_config("name", CLIP, graph, GraphKind("portable", precision))
    requested = config.optimization.execution_accelerators.cpu_execution_accelerator
    assert [accelerator.name for accelerator in requested] == accelerators


def write_models(folder: Path, graph: Path, clips: list[ClipSizes], parameters: Mapping[str, str] = {}) -> str:
    """The configurations of a head and of the encoders of its CLIPs; returns the head's name."""
    encoders = [(f"clip_image_{number:012}", f"clip_text_{number:012}") for number in range(len(clips))]
    sizes = HeadSizes(tuple(clip.embed_dim for clip in clips), answers=7, answer_types=4)
    configs = {HEAD_NAME: triton_config.head_config(HEAD_NAME, sizes, graph, TARGET, parameters)}
    for (image, text), clip in zip(encoders, clips, strict=True):
        configs[image] = triton_config.image_config(image, clip, graph, TARGET)
        configs[text] = triton_config.text_config(text, clip, graph, TARGET)
    for name, config in configs.items():
        (folder / name).mkdir(exist_ok=True)
        write_config(folder / name, config)
    (folder / HEAD_NAME / MADE_FROM_FILE).write_text(json.dumps({ENCODERS_KEY: encoders}), encoding="utf-8")
    return HEAD_NAME


@pytest.mark.parametrize(
    ("clips", "images"),
    [
        ([CLIP], {"image": 64}),
        ([replace(CLIP, squash=True)], {"image_squash": 64}),
        ([CLIP, ClipSizes(64, 48)], {"image": 64}),
        ([CLIP, ClipSizes(96, 48)], {"image_64": 64, "image_96": 96}),
        (
            [ClipSizes(96, 48, squash=True), CLIP, ClipSizes(96, 16)],
            {"image_96_squash": 96, "image_64": 64, "image_96": 96},
        ),
    ],
)
def test_the_ensemble_of_any_number_of_clips(clips: list[ClipSizes], images: dict[str, int], graph: Path) -> None:
    """Each step reads what an earlier one wrote, in the shape that the model takes; clients get one input a size."""
    folder = graph.parents[2]
    config = ensemble_config(folder, write_models(folder, graph, clips))
    assert {tensor.name: list(tensor.dims) for tensor in config.input} == {
        **{name: [size, size, 3] for name, size in images.items()},
        "tokens": [77],
    }
    written = {tensor.name: list(tensor.dims) for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        model = read_config(folder / step.model_name)
        taken = {tensor.name: list(tensor.dims) for tensor in model.input}
        assert {name: written[key] for name, key in step.input_map.items()} == taken
        given = {tensor.name: list(tensor.dims) for tensor in model.output}
        assert not {*step.output_map.values()} & {*written}
        written |= {key: given[name] for name, key in step.output_map.items()}
    assert {output.name for output in config.output} <= {*written}
    squashed = [read_config(folder / step.model_name) for step in config.ensemble_scheduling.step]
    parsed = [tensors.parse_image_input(tensor.name, tensor.dims) for tensor in config.input]
    assert [each for each in parsed if each] == tensors.image_inputs((clip.image_size, clip.squash) for clip in clips)
    assert sum("resize" in each.parameters for each in squashed) == sum(clip.squash for clip in clips)


@pytest.mark.parametrize("recorded", [{"run": "a"}, {ENCODERS_KEY: [["a"]]}, {ENCODERS_KEY: 5}, {ENCODERS_KEY: "ab"}])
def test_a_head_that_does_not_name_its_encoders(recorded: dict[str, Any], graph: Path) -> None:
    folder = graph.parents[2]
    head = write_models(folder, graph, [CLIP])
    (folder / head / MADE_FROM_FILE).write_text(json.dumps(recorded), encoding="utf-8")
    with pytest.raises(RepositoryError, match="does not name the encoders that gated_head_c was fitted on: export its"):
        ensemble_config(folder, head)


def test_a_damaged_model_is_not_taken_for_published(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy on a full disk leaves empty files, which say nothing against the others."""
    folder = graph.parents[2]
    head = folder / write_models(folder, graph, [CLIP])
    shutil.copytree(graph.parents[1], head, dirs_exist_ok=True)
    repository.finish_model(head, read_config(head))
    assert repository.is_published(folder, HEAD_NAME)
    for name in ("SHA256SUMS", "config.pbtxt"):
        before = (head / name).read_bytes()
        (head / name).write_bytes(b"")
        assert not repository.is_published(folder, HEAD_NAME), name
        (head / name).write_bytes(before)
    assert repository.is_published(folder, HEAD_NAME)

    def fail(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(serving.repository, "_sha256", fail)
    assert "cannot be read (Permission denied)" in repository.verify_digests(head)[0]


def test_a_head_without_its_encoders_has_no_ensemble(graph: Path) -> None:
    folder = graph.parents[2]
    head = write_models(folder, graph, [CLIP, CLIP])
    (folder / "clip_text_000000000001" / "config.pbtxt").unlink()
    with pytest.raises(
        RepositoryError, match="encoder clip_text_000000000001 that gated_head_c was fitted on is no longer"
    ):
        ensemble_config(folder, head)


@pytest.mark.parametrize("parameters", [{}, {tensors.DEMO_PARAMETER: "true", tensors.WORDING_PARAMETER: '{"a": 1}'}])
def test_head_and_ensemble_have_the_parameters_for_clients(parameters: dict[str, str], graph: Path) -> None:
    folder = graph.parents[2]
    head = write_models(folder, graph, [CLIP], parameters)
    for config in (read_config(folder / head), ensemble_config(folder, head)):
        of_clients = {tensors.DEMO_PARAMETER, tensors.WORDING_PARAMETER} & {*config.parameters}
        assert {name: config.parameters[name].string_value for name in of_clients} == parameters


def test_no_model_bounds_its_queue_or_has_a_timeout(graph: Path) -> None:
    """Beside another step, ``max_queue_size`` makes Triton 2.51 lose requests or crash; a timeout stalls it."""
    for config in (
        triton_config.image_config("name", CLIP, graph, TARGET),
        triton_config.text_config("name", CLIP, graph, TARGET),
        triton_config.head_config("name", HEAD, graph, TARGET),
    ):
        policy = config.dynamic_batching.default_queue_policy
        assert config.HasField("dynamic_batching")
        assert (policy.default_timeout_microseconds, policy.max_queue_size) == (0, 0)


def small_ensemble(head: str) -> Any:
    config = pb.ModelConfig(name=tensors.ENSEMBLE, platform="ensemble")
    config.ensemble_scheduling.step.add(model_name=head)
    return config


def test_a_commit_replaces_one_file_of_the_ensemble(tmp_path: Path) -> None:
    for head in ("gated_head_c", "gated_head_d"):
        repository.commit(tmp_path, small_ensemble(head), tmp_path / ".staging")
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
        repository.commit(tmp_path / "models", small_ensemble(HEAD_NAME), tmp_path / "staging")
    assert not (tmp_path / "models").exists()


def test_only_the_stale_files_of_killed_exports_are_removed(tmp_path: Path) -> None:
    (tmp_path / "models" / tensors.ENSEMBLE).mkdir(parents=True)
    abandoned = tmp_path / "models" / f".models.{'a' * 16}.partial"
    abandoned.mkdir()
    half_written = tmp_path / "models" / tensors.ENSEMBLE / ".config.pbtxt.partial"
    half_written.touch()
    with workspace(tmp_path / "models.cuda") as theirs, repository.lock(tmp_path / "models"):
        assert not abandoned.exists()
        assert not half_written.exists()
        assert theirs.is_dir()
