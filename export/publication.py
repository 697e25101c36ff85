"""From a fitted run to a repository that serves it: write the graphs, prove them, publish them.

What is published already is kept: after a new fit, only the head is written, and CLIP is not even loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from export import preprocess, repository, store
from export.encoders import write_image_encoder, write_text_encoder
from export.golden import PHOTO_FILE, write_golden
from export.heads import write_head
from export.parity import Comparison, check, compare_answers, report, table
from export.parity_inputs import (
    GOLDEN_QUESTION,
    RUN_QUESTIONS,
    Inputs,
    draw_golden_photo,
    drawn_inputs,
    random_inputs,
    run_inputs,
)
from export.proof import PARITY_FILE, Proof, keep, kept, prove
from export.repository import Names, Sizes
from export.runtimes import execution, open_graph
from export.targets import Target
from export.tolerances import TOLERANCES
from export.warmup import BATCH_SIZES, Sample, add_warmup, text_samples
from training.artifacts import digest_of, disk_full_names, write_json
from training.backbone import FrozenClip, clip_name, load_clip
from training.dataset import DatasetError, read_split
from training.predictor import Predictor
from training.run import CARD_FILE, Run
from vizwiz_client.contract import tensors
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tensors import CONTRACT_VERSION, DIGEST_LENGTH

# Raised when the same weights become another graph, or are proved on other inputs: their models get other names.
EXPORT_FORMAT = "14"
DEFAULT_TARGET = Target("portable", "fp32")
HEAD_TARGET = Target("portable", "fp32")  # of every head: it takes microseconds, so it may as well be exact
_OVERHEAD = 1.2  # bytes of a graph's file over those of its weights, and room for the rest


class ExportError(Exception):
    """A run that cannot be exported as asked."""


def export_run(
    run: Run, clip: FrozenClip | str, folder: Path, target: Target = DEFAULT_TARGET, *, recheck: bool = False
) -> Names:
    """Export ``run`` and publish it into the repository ``folder``; models that are there already are kept.

    Args:
        clip: the CLIP of the fit, or where to load it from; then it is only loaded when an encoder is to be written.
        target: what the graphs are written for.
        recheck: compare encoders that are published already with PyTorch once more, on this machine.

    Returns:
        The names of the published models.

    Raises:
        ExportError: the run was fitted on another CLIP, or under another contract.
        ParityError: a graph does not give what PyTorch gives. Nothing was published.
        RepositoryError: ``folder`` cannot be written, or there is no room.
    """
    check_contract(run)
    predictor = run.load_predictor()
    folder = folder.resolve()  # staging lies beside it, on its file system
    names = model_names(run, target)
    with disk_full_names(folder, "--repository"), store.locked(folder):
        new = [name for name in astuple(names) if not store.is_published(folder, name)]
        known = not recheck and not {names.image, names.text} & {*new}
        proof = kept(folder / names.image, folder / names.text, target) if known else None
        model = _clip(run, clip) if proof is None or isinstance(clip, FrozenClip) else None
        store.check_room(folder, _bytes_needed(new, names, model, predictor, target))
        with store.staging(folder) as staging:
            places = {name: (staging if name in new else folder) / name for name in astuple(names)}
            graphs = {name: places[name] for name in new if name != names.preprocess}
            _write_graphs(graphs, names, run, model, predictor, target)
            if proof is not None:
                print("the encoders were compared when they were published; --recheck does it again")
            else:
                assert model is not None
                proof = _prove(places, names, run, model, target)
            head = open_graph(_graph(places[names.head]), HEAD_TARGET)
            tolerance = TOLERANCES[target.precision]
            answers = compare_answers(head, predictor, proof.images, proof.texts, tolerance)
            comparisons = [*proof.comparisons, *answers]
            print(table(comparisons, tolerance, target.name, proof.execution))
            check(comparisons, tolerance, target.name)
            _finish(graphs, places, names, run, proof, comparisons, target)
            if names.preprocess in new:
                photo = (places[names.image] / PHOTO_FILE).read_bytes()
                preprocess.write_model(places[names.preprocess], sizes(run), EXPORT_FORMAT, photo)
            store.publish(folder, {name: places[name] for name in new}, staging)
            store.commit(folder, repository.ensemble_configs(names, sizes(run)))
    return names


def check_contract(run: Run) -> None:
    """Check that ``run`` was fitted on what clients of today send.

    Raises:
        ExportError: it was fitted under another version of the contract.
    """
    found = run.config.get("contract_version")
    if found != CONTRACT_VERSION:
        raise ExportError(
            f"{run.folder} was fitted under contract version {found}, this version exports {CONTRACT_VERSION}: clients "
            "would send the head other pixels or tokens than it was fitted on; fit again with `python -m training.fit`"
        )


def model_names(run: Run, target: Target = DEFAULT_TARGET) -> Names:
    """The names under which the models of a run are published: each says what it was made from.

    A head's name says what its encoders compute with too: its golden request and its parity report depend on it.
    """
    encoders = digest_of(run.clip_digest, EXPORT_FORMAT, target.name)[:DIGEST_LENGTH]
    head = digest_of(run.digest, EXPORT_FORMAT, target.name)[:DIGEST_LENGTH]
    return Names(
        tensors.IMAGE_ENCODER_PREFIX + encoders,
        tensors.TEXT_ENCODER_PREFIX + encoders,
        tensors.HEAD_PREFIX + head,
        preprocess.model_name(sizes(run), EXPORT_FORMAT),
    )


def sizes(run: Run) -> Sizes:
    """The sizes of the tensors that a run's models exchange."""
    clip = run.clips[0]
    return Sizes(clip["image_size"], clip["embed_dim"], len(run.answers), len(run.answer_types))


def _clip(run: Run, clip: FrozenClip | str) -> FrozenClip:
    model = load_clip(clip) if isinstance(clip, str) else clip
    if model.digest != run.clip_digest:
        raise ExportError(
            f"{run.folder} was fitted on the CLIP {run.clip_digest[:12]} ({run.clip_source}), but {model.source} is "
            f"{model.digest[:12]}: give the CLIP of the fit with --clip, or fit again"
        )
    return model


def _bytes_needed(new: list[str], names: Names, model: FrozenClip | None, predictor: Predictor, target: Target) -> int:
    modules: list[torch.nn.Module] = [predictor] if names.head in new else []
    if model is not None and {names.image, names.text} & {*new}:
        copies = 2 if target.precision == "int8" else 1  # one is watched while it computes examples
        modules += copies * [model.model]
    return int(sum(4 * weights.numel() for module in modules for weights in module.parameters()) * _OVERHEAD)


def _write_graphs(
    new: dict[str, Path], names: Names, run: Run, model: FrozenClip | None, predictor: Predictor, target: Target
) -> None:
    """Write the graphs of the models that are ``new`` into their folders, and the photo of the golden request."""
    for name, folder in new.items():
        path = _graph(folder)
        path.parent.mkdir(parents=True)
        print(f"writing {name}")
        if name == names.head:
            write_head(predictor, name.removeprefix(tensors.HEAD_PREFIX), path)
            continue
        assert model is not None
        if name == names.image:
            write_image_encoder(model, target, path)
            (folder / PHOTO_FILE).write_bytes(draw_golden_photo())
        else:
            write_text_encoder(model, target, path)


def _prove(places: dict[str, Path], names: Names, run: Run, model: FrozenClip, target: Target) -> Proof:
    """Compare the encoders with PyTorch."""
    image, text = places[names.image], places[names.text]
    inputs = [random_inputs(model.image_size), drawn_inputs(model.image_size, (image / PHOTO_FILE).read_bytes())]
    if own := _own_inputs(run, model.image_size):
        inputs.append(own)
    return prove(_graph(image), _graph(text), target, model, inputs)


def _own_inputs(run: Run, side: int) -> Inputs | None:
    """Photos and questions of the run's validation split, where it is still there."""
    folder = Path(run.config["data"]["folder"])
    try:
        return run_inputs(side, read_split(folder, "val", limit=RUN_QUESTIONS))
    except DatasetError:
        print(f"the data of the fit, {folder}, cannot be read: comparing on noise and drawn photos alone")
        return None


def _finish(
    new: dict[str, Path],
    places: dict[str, Path],
    names: Names,
    run: Run,
    proof: Proof,
    comparisons: list[Comparison],
    target: Target,
) -> None:
    """Write what travels with each ``new`` model, and its configuration last."""
    encoder = {
        "clip": clip_name(run.clip_source),
        "clip_sha256": run.clip_digest,
        "target": target.name,
        "export_format": EXPORT_FORMAT,
    }
    configs: dict[str, Callable[[str, Sizes, Path], Any]] = {
        names.image: partial(repository.image_config, target=target),
        names.text: partial(repository.text_config, target=target),
        names.head: partial(repository.head_config, target=target),
    }
    samples = _samples(places[names.image], names, run, proof)
    for name, folder in new.items():
        made_from: dict[str, Any] = encoder
        if name == names.head:
            made_from = {"run": run.folder.name, "run_sha256": run.digest, "answers": len(run.answers), **encoder}
            _finish_head(folder, places[names.image], name, run, proof, comparisons, target)
        else:
            keep(folder, proof.images if name == names.image else proof.texts, proof)
        write_json(folder / store.MADE_FROM_FILE, made_from)
        config = configs[name](name, sizes(run), _graph(folder))
        add_warmup(folder, config, samples[name], BATCH_SIZES)
        store.seal(folder, config)


def _samples(image: Path, names: Names, run: Run, proof: Proof) -> dict[str, dict[str, Sample]]:
    """What each model warms up on: the golden request, and the text encoder on questions of every length."""
    photo = load_photo((image / PHOTO_FILE).read_bytes())
    features = {
        tensors.IMAGE_FEATURES: proof.images["drawn"].measured[0],
        tensors.TEXT_FEATURES: proof.texts["drawn"].measured[0],
    }
    return {
        names.image: {"golden": {tensors.IMAGE: to_pixels(photo, sizes(run).side)}},
        names.text: text_samples(GOLDEN_QUESTION),
        names.head: {"golden": features},
    }


def _finish_head(
    folder: Path,
    image: Path,
    name: str,
    run: Run,
    proof: Proof,
    comparisons: list[Comparison],
    target: Target,
) -> None:
    tolerance = TOLERANCES[target.precision]
    for spec, labels in ((tensors.ANSWER, run.answers), (tensors.ANSWER_TYPE, run.answer_types)):
        repository.write_labels(folder / f"{spec.name}.txt", labels)
    if (run.folder / CARD_FILE).is_file():
        copyfile(run.folder / CARD_FILE, folder / CARD_FILE)
    copyfile(image / PHOTO_FILE, folder / PHOTO_FILE)
    write_golden(folder, run, proof, name.removeprefix(tensors.HEAD_PREFIX), tolerance)
    write_json(
        folder / PARITY_FILE, report(comparisons, tolerance, target.name, proof.execution, execution(HEAD_TARGET))
    )


def _graph(folder: Path) -> Path:
    return folder / repository.VERSION / repository.GRAPH_FILE
