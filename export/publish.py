"""Export a fitted run and publish it: write the missing graphs, check parity, publish, switch the ensemble.

Published models are reused: after a new fit only the head is written, and CLIP is not loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export import repository, triton_config
from export.clip_graph import write_image_encoder, write_text_encoder
from export.comparison import TOLERANCES, Tolerance
from export.head_graph import write_head
from export.parity import (
    PARITY_FILE,
    ParityResult,
    check_parity,
    compare_answers,
    encoder_comparisons,
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
from export.triton_config import ClipSizes, HeadSizes, ModelNames, Sample
from serving import golden
from serving.repository import ENCODERS_KEY, GRAPH_FILE, MADE_FROM_FILE, VERSION, ensemble_config
from training.artifacts import digest_of, explain_full_disk, write_json
from training.backbone import FrozenClip, clip_name, load_clip
from training.dataset import DatasetError, read_split
from training.model import ClipEnsemble
from training.run import CARD_FILE, Run
from vizwiz_client.contract import tensors
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tensors import CONTRACT_VERSION, DIGEST_LENGTH, TensorSpec

# Part of every model's name. Raise it when the same weights become another graph, when parity inputs change, or when
# this version cannot read the files beside a published graph.
EXPORT_FORMAT = "19"
DEFAULT_KIND = GraphKind("portable", "fp32")
HEAD_KIND = GraphKind("portable", "fp32")  # of every head: it is small, so it can be exact
_GOLDEN_CANDIDATES = 5
_SIZE_OVERHEAD = 1.2  # bytes of a model folder per byte of weights


class ExportError(Exception):
    """A run that this version, or this CLIP, cannot export."""


def export_run(
    run: Run,
    clips: Sequence[FrozenClip] | Sequence[str] | FrozenClip | str,
    folder: Path,
    kind: GraphKind = DEFAULT_KIND,
    *,
    recheck: bool = False,
) -> ModelNames:
    """Export a run and publish it into a Triton model repository.

    Published models that are complete and unaltered are reused. On any error nothing is published, and the repository
    is unchanged. Waits, without limit, until no other export or rollout holds the lock of ``folder``. Prints its
    progress and the table of the parity check.

    Args:
        run: the fitted run, from :func:`training.run.read_run`.
        clips: the CLIPs of the fit, in its order: each on the CPU in fp32, or its name or checkpoint file. A named one
            is loaded only to write or check its encoders, one after the other.
        folder: the model repository; created if missing.
        kind: variant and precision of the encoders. The head is always portable fp32.
        recheck: compare published encoders with PyTorch again, on this machine.

    Returns:
        The names of the models that the ensemble now references.

    Raises:
        ExportError: the run was fitted under another contract version, or a CLIP is not on the CPU in fp32.
        RunError: the run was fitted on other CLIPs, or its heads cannot be read.
        ParityError: a graph's outputs differ from PyTorch's; the subclasses are in :mod:`export.comparison`.
        GraphError: a graph has operators that its variant does not allow.
        GraphKindError: the runtime of ``kind`` is not installed here.
        RepositoryError: ``folder`` cannot be written, or its disk has too little space.
        ClipError: a CLIP cannot be loaded.
        OSError: a file cannot be read or written, for example because the disk is full.
    """
    check_contract(run)
    sources: list[FrozenClip | str] = [clips] if isinstance(clips, FrozenClip | str) else [*clips]
    run.check_clips([str(getattr(source, "source", source)) for source in sources])
    ensemble = run.load_ensemble()
    folder = folder.resolve()  # staging folders lie beside it, on the same file system
    names = model_names(run, kind)
    if len({*names.images}) < len(names.images):
        raise ExportError(f"{run.folder} was fitted on one CLIP under several names: fit again, with each CLIP once")
    with explain_full_disk(folder, "--repository"), repository.lock(folder):
        missing = [name for name in names.all if not repository.is_published(folder, name)]
        with repository.staging_folder(folder) as staging:
            folders = {name: (staging if name in missing else folder) / name for name in names.all}
            plan = _Plan(run, kind, names, folders, frozenset(missing), recheck)
            results = [_export_encoders(plan, number, source) for number, source in enumerate(sources)]
            _export_head(plan, ensemble, results)
            repository.publish_models(folder, {name: folders[name] for name in missing}, staging)
            repository.commit(folder, ensemble_config(folder, names.head), staging)
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
    encoders = [digest_of(clip["sha256"], EXPORT_FORMAT, kind.name)[:DIGEST_LENGTH] for clip in run.clips]
    return ModelNames(
        tuple(tensors.IMAGE_ENCODER_PREFIX + digest for digest in encoders),
        tuple(tensors.TEXT_ENCODER_PREFIX + digest for digest in encoders),
        tensors.HEAD_PREFIX + digest_of(run.digest, EXPORT_FORMAT, kind.name)[:DIGEST_LENGTH],
    )


def labels(run: Run) -> dict[TensorSpec, list[str]]:
    """Labels of the head's outputs that have some."""
    found = {tensors.ANSWER: run.answers, tensors.ANSWER_TYPE: run.answer_types}
    return found | ({tensors.QUALITY: run.quality_issues} if run.quality_issues else {})


def write_golden_request(
    folder: Path, run: Run, ensemble: ClipEnsemble, results: Sequence[ParityResult], digest: str, tolerance: Tolerance
) -> None:
    """Write ``golden.json``: a question about ``golden.jpg``, and PyTorch's answer to it.

    A rollout sends this request after it has loaded the head, and compares the answers. ``expected`` holds
    ``candidates`` (the five best answers with their ``confidence``), ``answer_types`` and ``quality`` (all, likewise),
    ``answerable`` and ``head_id``. Each probability may differ by ``tolerance``.

    Args:
        folder: the head's model folder.
        run: the run of the head.
        ensemble: the fitted heads.
        results: features of the golden request, the first of the drawn inputs, of each CLIP.
        digest: the digest in the head's name.
        tolerance: of the encoders' precision.
    """
    features = [(result.images["drawn"].reference[:1], result.texts["drawn"].reference[:1]) for result in results]
    outputs = {spec: output[0] for spec, output in reference_answers(ensemble, features).items()}
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


@dataclass(frozen=True)
class _Plan:
    """Inputs and destination folders of one export."""

    run: Run
    kind: GraphKind
    names: ModelNames
    folders: Mapping[str, Path]  # of every model: in the repository, or staged if it is missing there
    missing: frozenset[str]
    recheck: bool

    @property
    def tolerance(self) -> Tolerance:
        """Largest accepted differences from PyTorch."""
        return TOLERANCES[self.kind.precision]

    def graph(self, name: str) -> Path:
        """The ONNX file of a model."""
        return self.folders[name] / VERSION / GRAPH_FILE

    def check_free_space(self, parameters: int) -> None:
        """Check that graphs of this many fp32 parameters fit. Raises RepositoryError."""
        repository.check_free_space(self.folders[self.names.head].parent, int(4 * parameters * _SIZE_OVERHEAD))


def _export_encoders(plan: _Plan, number: int, source: FrozenClip | str) -> ParityResult:
    """Write the encoders of a CLIP where they are missing, and compare them with PyTorch unless that was done."""
    image, text = plan.names.encoders[number]
    written = [name for name in (image, text) if name in plan.missing]
    result = None
    photo, own_photo = (plan.folders[name] / golden.PHOTO_FILE for name in (plan.names.images[0], image))
    if image in written:
        own_photo.parent.mkdir(parents=True)
        own_photo.write_bytes(photo.read_bytes() if number else draw_golden_photo())
    # The photo is drawn, and another version of Pillow draws another one. All CLIPs need the same golden request.
    if not plan.recheck and not written and own_photo.read_bytes() == photo.read_bytes():
        result = ParityResult.load(plan.folders[image], plan.folders[text], plan.kind)
    if isinstance(source, FrozenClip) or result is None:
        model = _load_matching_clip(plan.run, number, source)
    if result is not None:
        print(f"{image}, {text}: passed parity already; --recheck compares them again")
        return result
    if written:
        copies = 2 if plan.kind.precision == "int8" else 1  # calibration writes a second graph
        plan.check_free_space(copies * sum(weights.numel() for weights in model.model.parameters()))
    for name, write in ((image, write_image_encoder), (text, write_text_encoder)):
        if name in written:
            print(f"writing {name}")
            plan.graph(name).parent.mkdir(parents=True)
            write(model, plan.kind, plan.graph(name))
    inputs = [random_inputs(model), drawn_inputs(model, photo.read_bytes())]
    if validation := _validation_inputs(plan.run, model):
        inputs.append(validation)
    result = check_parity(plan.graph(image), plan.graph(text), plan.kind, model, inputs)
    for name in written:
        _finish_encoder(plan, number, name, result)
    return result


def _export_head(plan: _Plan, ensemble: ClipEnsemble, results: Sequence[ParityResult]) -> None:
    """Write the head where it is missing, and compare the whole chain with PyTorch.

    Raises:
        ToleranceError: an encoder or the chain is out of tolerance.
    """
    name, run = plan.names.head, plan.run
    if name in plan.missing:
        print(f"writing {name}")
        plan.check_free_space(sum(weights.numel() for weights in ensemble.parameters()))
        plan.graph(name).parent.mkdir(parents=True)
        write_head(ensemble, name.removeprefix(tensors.HEAD_PREFIX), plan.graph(name))
    graph, features = open_graph(plan.graph(name), HEAD_KIND), [(result.images, result.texts) for result in results]
    comparisons = encoder_comparisons(results) + compare_answers(graph, ensemble, features, plan.tolerance)
    print(parity_table(comparisons, plan.tolerance, plan.kind.name, results[0].execution))
    require_tolerance(comparisons, plan.tolerance, plan.kind.name)
    if name not in plan.missing:
        return
    folder = plan.folders[name]
    for spec, of_output in labels(run).items():
        (folder / f"{spec.name}.txt").write_bytes(repository.label_file(of_output))
    if (run.folder / CARD_FILE).is_file():
        copyfile(run.folder / CARD_FILE, folder / CARD_FILE)
    copyfile(plan.folders[plan.names.images[0]] / golden.PHOTO_FILE, folder / golden.PHOTO_FILE)
    digest = name.removeprefix(tensors.HEAD_PREFIX)
    write_golden_request(folder, run, ensemble, results, digest, plan.tolerance)
    report = parity_report(comparisons, plan.tolerance, plan.kind.name, results[0].execution, execution(HEAD_KIND))
    write_json(folder / PARITY_FILE, report)
    _finish_head(plan, results)


def _finish_encoder(plan: _Plan, number: int, name: str, result: ParityResult) -> None:
    """Write an encoder's parity results, origin, warm-up samples and configuration."""
    folder, clip = plan.folders[name], plan.run.clips[number]
    sizes = ClipSizes(clip["image_size"], clip["embed_dim"], clip.get("squash", False))
    samples: dict[str, Sample]
    if name in plan.names.images:
        result.save(folder, result.images)
        config = triton_config.image_config(name, sizes, plan.graph(name), plan.kind)
        photo = load_photo((folder / golden.PHOTO_FILE).read_bytes())
        samples = {"golden": {tensors.IMAGE: to_pixels(photo, sizes.image_size, squash=sizes.squash)}}
    else:
        result.save(folder, result.texts)
        config = triton_config.text_config(name, sizes, plan.graph(name), plan.kind)
        samples = triton_config.text_samples(GOLDEN_QUESTION)
    origin = {"clip": clip_name(clip["source"]), "clip_sha256": clip["sha256"]}
    _finish(folder, config, samples, origin, plan.kind)


def _finish_head(plan: _Plan, results: Sequence[ParityResult]) -> None:
    """Write the head's origin, warm-up sample and configuration."""
    run, name = plan.run, plan.names.head
    embed_dims = tuple(clip["embed_dim"] for clip in run.clips)
    sizes = HeadSizes(embed_dims, len(run.answers), len(run.answer_types), len(run.quality_issues))
    config = triton_config.head_config(name, sizes, plan.graph(name), plan.kind, _parameters(run))
    sample = {
        spec: features["drawn"].measured[0]
        for tensor, by_clip in (
            (tensors.IMAGE_FEATURES, [result.images for result in results]),
            (tensors.TEXT_FEATURES, [result.texts for result in results]),
        )
        for spec, features in zip(tensors.of_each_clip(tensor, len(results)), by_clip, strict=True)
    }
    origin = {
        "run": run.folder.name,
        "run_sha256": run.digest,
        "answers": len(run.answers),
        **({"quality_issues": sizes.quality_issues} if sizes.quality_issues else {}),
        "clip": " and ".join(clip_name(clip["source"]) for clip in run.clips),
        ENCODERS_KEY: plan.names.encoders,
    }
    _finish(plan.folders[name], config, {"golden": sample}, origin, plan.kind)


def _finish(
    folder: Path, config: Any, samples: Mapping[str, Sample], made_from: Mapping[str, Any], kind: GraphKind
) -> None:
    write_json(folder / MADE_FROM_FILE, {**made_from, **_format(kind)})
    triton_config.add_warmup(folder, config, samples, kind)
    repository.finish_model(folder, config)


def _format(kind: GraphKind) -> dict[str, str]:
    return {"target": kind.name, "export_format": EXPORT_FORMAT}


def _load_matching_clip(run: Run, number: int, clip: FrozenClip | str) -> FrozenClip:
    model = load_clip(clip) if isinstance(clip, str) else clip
    sources, digests = ([each[key] for each in run.clips] for key in ("source", "sha256"))
    sources[number], digests[number] = model.source, model.digest
    run.check_clips(sources, digests)
    weights = model.model.text_projection
    if weights.device.type != "cpu" or weights.dtype != torch.float32:
        raise ExportError(
            f"the CLIP {model.source} is on {weights.device} in {weights.dtype}, export needs it on the CPU in "
            "torch.float32: load it with `training.backbone.load_clip(source)`"
        )
    return model


def _validation_inputs(run: Run, model: FrozenClip) -> Inputs | None:
    """Photos and questions of the run's validation split, if it can still be read."""
    folder = Path(run.config["data"]["folder"])
    try:
        split = read_split(folder, "val", limit=MAX_RUN_QUESTIONS)
    except (DatasetError, OSError) as error:
        print(f"the data of the fit cannot be read ({error}): comparing on random and drawn inputs alone")
        return None
    return run_inputs(model, split)


def _parameters(run: Run) -> dict[str, str]:
    """Parameters of the ensemble for clients: whether pictures were drawn, and thresholds of sentences."""
    demo = {tensors.DEMO_PARAMETER: "true"} if run.config["data"].get("is_demo", False) else {}
    return demo | ({tensors.WORDING_PARAMETER: json.dumps(run.wording, sort_keys=True)} if run.wording else {})


def _most_probable(key: str, labels: Sequence[str], probabilities: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """Labels, the most probable first."""
    best = np.argsort(-probabilities, kind="stable")
    return [{key: labels[index], "confidence": float(probabilities[index])} for index in best]
