"""Export a fitted run and publish it: write the missing graphs, check parity, publish, switch the ensemble.

Published models are reused: after a new fit only the head is written, and CLIP is not loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export import repository, triton_config
from export.clip_graph import write_image_encoder, write_text_encoder
from export.comparison import TOLERANCES, Comparison, Tolerance
from export.head_graph import write_head
from export.parity import (
    PARITY_FILE,
    ParityResult,
    check_parity,
    compare_answers,
    parity_report,
    parity_table,
    reference_answers,
    require_tolerance,
)
from export.parity_inputs import (
    GOLDEN_QUESTION,
    MAX_RUN_QUESTIONS,
    Inputs,
    draw_golden_photo,
    drawn_inputs,
    random_inputs,
    run_inputs,
)
from export.targets import GraphKind, execution, open_graph
from export.triton_config import ModelNames, Sample, Sizes
from serving import golden
from serving.repository import GRAPH_FILE, MADE_FROM_FILE, VERSION
from training.artifacts import digest_of, explain_full_disk, write_json
from training.backbone import FrozenClip, clip_name, load_clip
from training.dataset import DatasetError, read_split
from training.model import Predictor
from training.run import CARD_FILE, Run
from vizwiz_client.contract import tensors
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tensors import CONTRACT_VERSION, DIGEST_LENGTH, TensorSpec

# Part of every model's name. Raise it when the same weights become another graph, when parity inputs change, or when
# this version cannot read the files beside a published graph.
EXPORT_FORMAT = "18"
DEFAULT_KIND = GraphKind("portable", "fp32")
HEAD_KIND = GraphKind("portable", "fp32")  # of every head: it is small, so it can be exact
_GOLDEN_CANDIDATES = 5
_SIZE_OVERHEAD = 1.2  # bytes of a model folder per byte of weights


class ExportError(Exception):
    """A run that this version, or this CLIP, cannot export."""


def export_run(
    run: Run, clip: FrozenClip | str, folder: Path, kind: GraphKind = DEFAULT_KIND, *, recheck: bool = False
) -> ModelNames:
    """Export a run and publish it into a Triton model repository.

    Published models that are complete and unaltered are reused. On any error nothing is published, and the repository
    is unchanged. Waits, without limit, until no other export or rollout holds the lock of ``folder``. Prints its
    progress and the table of the parity check.

    Args:
        run: the fitted run, from :func:`training.run.read_run`.
        clip: the CLIP of the fit, on the CPU in fp32; or its name or checkpoint file, which is loaded only to write or
            check an encoder.
        folder: the model repository; created if missing.
        kind: variant and precision of the encoders. The head is always portable fp32.
        recheck: compare published encoders with PyTorch again, on this machine.

    Returns:
        The names of the models that the ensemble now references.

    Raises:
        ExportError: the run was fitted on another CLIP, or under another contract version, or ``clip`` is not on the
            CPU in fp32.
        RunError: the heads of ``run`` cannot be read.
        ParityError: a graph's outputs differ from PyTorch's; the subclasses are in :mod:`export.comparison`.
        GraphError: a graph has operators that its variant does not allow.
        GraphKindError: the runtime of ``kind`` is not installed here.
        RepositoryError: ``folder`` cannot be written, or its disk has too little space.
        ClipError: ``clip`` cannot be loaded.
        OSError: a file cannot be read or written, for example because the disk is full.
    """
    check_contract(run)
    predictor = run.load_predictor()
    folder = folder.resolve()  # staging folders lie beside it, on the same file system
    names = model_names(run, kind)
    tolerance = TOLERANCES[kind.precision]
    with explain_full_disk(folder, "--repository"), repository.lock(folder):
        missing = [name for name in astuple(names) if not repository.is_published(folder, name)]
        result = None
        if not recheck and not {names.image, names.text} & {*missing}:
            result = ParityResult.load(folder / names.image, folder / names.text, kind)
        model = _load_matching_clip(run, clip) if result is None or isinstance(clip, FrozenClip) else None
        repository.check_free_space(folder, _bytes_needed(missing, names, model, predictor, kind))
        with repository.staging_folder(folder) as staging:
            folders = {name: (staging if name in missing else folder) / name for name in astuple(names)}
            for name in missing:
                _write_graph(name, folders[name], names, model, predictor, kind)
            if result is not None:
                print("the published encoders passed parity already; --recheck compares them again")
            else:
                assert model is not None
                result = _check_encoders(folders, names, run, model, kind)
            head = open_graph(_graph(folders[names.head]), HEAD_KIND)
            answers = compare_answers(head, predictor, result.images, result.texts, tolerance)
            comparisons = [*result.comparisons, *answers]
            print(parity_table(comparisons, tolerance, kind.name, result.execution))
            require_tolerance(comparisons, tolerance, kind.name)
            if names.head in missing:
                _write_head_files(folders, names, run, predictor, result, comparisons, kind)
            for name in missing:
                _finish_model(name, folders, names, run, result, kind)
            repository.publish_models(folder, {name: folders[name] for name in missing}, staging)
            repository.commit(folder, ensemble_config(names, run), staging)
    return names


def check_contract(run: Run) -> None:
    """Check that ``run`` was fitted on the pixels and tokens that today's clients send.

    Raises:
        ExportError: it was fitted under another contract version.
    """
    if (found := run.config.get("contract_version")) != CONTRACT_VERSION:
        raise ExportError(
            f"{run.folder} was fitted under contract version {found}, this version exports {CONTRACT_VERSION}: clients "
            "would send the head other pixels or tokens than it was fitted on; fit again with `python -m training.fit`"
        )


def model_names(run: Run, kind: GraphKind = DEFAULT_KIND) -> ModelNames:
    """Names of the models of ``run``: each contains a digest of what the model is made from.

    A head's digest covers the kind of the encoders, on which its golden request and its parity report depend.
    """
    encoders = digest_of(run.clip["sha256"], EXPORT_FORMAT, kind.name)[:DIGEST_LENGTH]
    head = digest_of(run.digest, EXPORT_FORMAT, kind.name)[:DIGEST_LENGTH]
    return ModelNames(
        tensors.IMAGE_ENCODER_PREFIX + encoders,
        tensors.TEXT_ENCODER_PREFIX + encoders,
        tensors.HEAD_PREFIX + head,
    )


def ensemble_config(names: ModelNames, run: Run) -> Any:
    """Configuration of the ensemble that serves ``run`` with the models ``names``."""
    return triton_config.ensemble_config(names, _sizes(run), _parameters(run))


def labels(run: Run) -> dict[TensorSpec, list[str]]:
    """Labels of the head's outputs that have some."""
    found = {tensors.ANSWER: run.answers, tensors.ANSWER_TYPE: run.answer_types}
    return found | ({tensors.QUALITY: run.quality_issues} if run.quality_issues else {})


def write_golden_request(
    folder: Path, run: Run, predictor: Predictor, result: ParityResult, digest: str, tolerance: Tolerance
) -> None:
    """Write ``golden.json``: a question about ``golden.jpg``, and PyTorch's answer to it.

    A rollout sends this request after it has loaded the head, and compares the answers. ``expected`` holds
    ``candidates`` (the five best answers with their ``confidence``), ``answer_types`` and ``quality`` (all, likewise),
    ``answerable`` and ``head_id``. Each probability may differ by ``tolerance``.

    Args:
        folder: the head's model folder.
        run: the run of the head.
        predictor: the fitted head.
        result: features of the golden request, the first of the drawn inputs.
        digest: the digest in the head's name.
        tolerance: of the encoders' precision.
    """
    features = [each["drawn"].reference[:1] for each in (result.images, result.texts)]
    outputs = {spec: output[0] for spec, output in reference_answers(predictor, *features).items()}
    expected = {
        "candidates": _most_probable("answer", run.answers, outputs[tensors.ANSWER])[:_GOLDEN_CANDIDATES],
        "answer_types": _most_probable("answer_type", run.answer_types, outputs[tensors.ANSWER_TYPE]),
        "answerable": float(outputs[tensors.ANSWERABLE][0]),
        "head_id": digest,
    }
    if tensors.QUALITY in outputs:
        expected["quality"] = _most_probable("issue", run.quality_issues, outputs[tensors.QUALITY])
    request = {"question": GOLDEN_QUESTION, "expected": expected, "tolerance": tolerance.relative_error}
    write_json(folder / golden.REQUEST_FILE, request)


def _load_matching_clip(run: Run, clip: FrozenClip | str) -> FrozenClip:
    model = load_clip(clip) if isinstance(clip, str) else clip
    if model.digest != run.clip["sha256"]:
        raise ExportError(
            f"{run.folder} was fitted on the CLIP {run.clip['sha256'][:12]} ({run.clip['source']}), but "
            f"{model.source} is {model.digest[:12]}: give the CLIP of the fit with --clip, or fit again"
        )
    weights = model.model.text_projection
    if weights.device.type != "cpu" or weights.dtype != torch.float32:
        raise ExportError(
            f"the CLIP {model.source} is on {weights.device} in {weights.dtype}, export needs it on the CPU in "
            "torch.float32: load it with `training.backbone.load_clip(source)`"
        )
    return model


def _bytes_needed(
    missing: Sequence[str], names: ModelNames, model: FrozenClip | None, predictor: Predictor, kind: GraphKind
) -> int:
    modules: list[torch.nn.Module] = [predictor] if names.head in missing else []
    if model is not None and {names.image, names.text} & {*missing}:
        copies = 2 if kind.precision == "int8" else 1  # calibration writes a second graph
        modules += copies * [model.model]
    return int(sum(4 * weights.numel() for module in modules for weights in module.parameters()) * _SIZE_OVERHEAD)


def _write_graph(
    name: str, folder: Path, names: ModelNames, model: FrozenClip | None, predictor: Predictor, kind: GraphKind
) -> None:
    """Write the graph of a model, and with the image encoder's the photo of the golden request."""
    path = _graph(folder)
    path.parent.mkdir(parents=True)
    print(f"writing {name}")
    if name == names.head:
        write_head(predictor, name.removeprefix(tensors.HEAD_PREFIX), path)
        return
    assert model is not None
    if name == names.image:
        write_image_encoder(model, kind, path)
        (folder / golden.PHOTO_FILE).write_bytes(draw_golden_photo())
    else:
        write_text_encoder(model, kind, path)


def _check_encoders(
    folders: Mapping[str, Path], names: ModelNames, run: Run, model: FrozenClip, kind: GraphKind
) -> ParityResult:
    image, text = folders[names.image], folders[names.text]
    inputs = [random_inputs(model), drawn_inputs(model, (image / golden.PHOTO_FILE).read_bytes())]
    if validation := _validation_inputs(run, model):
        inputs.append(validation)
    return check_parity(_graph(image), _graph(text), kind, model, inputs)


def _validation_inputs(run: Run, model: FrozenClip) -> Inputs | None:
    """Photos and questions of the run's validation split, if it can still be read."""
    folder = Path(run.config["data"]["folder"])
    try:
        return run_inputs(model, read_split(folder, "val", limit=MAX_RUN_QUESTIONS))
    except DatasetError:
        print(f"the data of the fit, {folder}, cannot be read: comparing on random and drawn inputs alone")
        return None


def _write_head_files(
    folders: Mapping[str, Path],
    names: ModelNames,
    run: Run,
    predictor: Predictor,
    result: ParityResult,
    comparisons: Sequence[Comparison],
    kind: GraphKind,
) -> None:
    """Write the files beside a head's graph: labels, model card, golden request and parity report."""
    folder, tolerance = folders[names.head], TOLERANCES[kind.precision]
    for spec, of_output in labels(run).items():
        (folder / f"{spec.name}.txt").write_bytes(repository.label_file(of_output))
    if (run.folder / CARD_FILE).is_file():
        copyfile(run.folder / CARD_FILE, folder / CARD_FILE)
    copyfile(folders[names.image] / golden.PHOTO_FILE, folder / golden.PHOTO_FILE)
    digest = names.head.removeprefix(tensors.HEAD_PREFIX)
    write_golden_request(folder, run, predictor, result, digest, tolerance)
    report = parity_report(comparisons, tolerance, kind.name, result.execution, execution(HEAD_KIND))
    write_json(folder / PARITY_FILE, report)


def _finish_model(
    name: str, folders: Mapping[str, Path], names: ModelNames, run: Run, result: ParityResult, kind: GraphKind
) -> None:
    """Write the origin, warm-up samples and configuration of a model; of an encoder also its parity results."""
    folder, shape = folders[name], _sizes(run)
    photo_bytes = (folders[names.image] / golden.PHOTO_FILE).read_bytes()
    made_from: dict[str, Any] = {
        "clip": clip_name(run.clip["source"]),
        "clip_sha256": run.clip["sha256"],
        "target": kind.name,
        "export_format": EXPORT_FORMAT,
    }
    samples: dict[str, Sample]
    if name == names.image:
        result.save(folder, result.images)
        config = triton_config.image_config(name, shape, _graph(folder), kind)
        samples = {"golden": {tensors.IMAGE: to_pixels(load_photo(photo_bytes), shape.image_size)}}
    elif name == names.text:
        result.save(folder, result.texts)
        config = triton_config.text_config(name, shape, _graph(folder), kind)
        samples = triton_config.text_samples(GOLDEN_QUESTION)
    else:
        made_from = {"run": run.folder.name, "run_sha256": run.digest, "answers": len(run.answers), **made_from}
        made_from |= {"quality_issues": shape.quality_issues} if shape.quality_issues else {}
        config = triton_config.head_config(name, shape, _graph(folder), kind, _parameters(run))
        samples = {
            "golden": {
                tensors.IMAGE_FEATURES: result.images["drawn"].measured[0],
                tensors.TEXT_FEATURES: result.texts["drawn"].measured[0],
            }
        }
    write_json(folder / MADE_FROM_FILE, made_from)
    triton_config.add_warmup(folder, config, samples)
    repository.finish_model(folder, config)


def _sizes(run: Run) -> Sizes:
    """Dimensions of the tensors of a run's models."""
    size = run.clips[0]["image_size"], run.clips[0]["embed_dim"]
    return Sizes(*size, len(run.answers), len(run.answer_types), len(run.quality_issues))


def _parameters(run: Run) -> dict[str, str]:
    """Parameters of the ensemble for clients: whether pictures were drawn, and thresholds of sentences."""
    demo = {tensors.DEMO_PARAMETER: "true"} if run.config["data"].get("is_demo", False) else {}
    return demo | ({tensors.WORDING_PARAMETER: json.dumps(run.wording, sort_keys=True)} if run.wording else {})


def _most_probable(key: str, labels: Sequence[str], probabilities: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """Labels, the most probable first."""
    best = np.argsort(-probabilities, kind="stable")
    return [{key: labels[index], "confidence": float(probabilities[index])} for index in best]


def _graph(folder: Path) -> Path:
    return folder / VERSION / GRAPH_FILE
