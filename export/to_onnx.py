"""Write CLIP's encoders and a fitted head to ONNX, prove them equal to PyTorch, publish them for Triton.

    python -m export.to_onnx                        # the newest run, into triton_models/
    python -m export.to_onnx --run runs/NAME        # a certain run

The demo takes about half a minute on two cores. A graph that differs from PyTorch publishes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from export import repository
from export.graphs import GraphError, write_graph
from export.heads import ServedHead
from export.modules import TextEncoder, image_encoder
from export.parity import Graphs, ParityError, check_parity
from export.repository import Names, Sizes
from training.clip_models import ClipError, FrozenClip, load_clip
from training.data import DatasetError, Split, read_split
from training.demo import ensure_demo_dataset
from training.predictor import Predictor
from training.runs import Run, RunError, newest_run, read_run
from training.storage import digest_of, publish_folder, workspace, write_json
from vizwiz_client.contract import tensors
from vizwiz_client.contract.errors import ImageError, QuestionError
from vizwiz_client.contract.geometry import load_photo
from vizwiz_client.contract.tensors import DIGEST_LENGTH
from vizwiz_client.contract.tokens import tokenize

EXPORT_FORMAT = "2"  # raised when the same weights become another graph: their models get other names
PARITY_PHOTOS = 16


class ExportError(Exception):
    """A run that cannot be exported as asked."""


def export_run(run: Run, model: FrozenClip, target: Path) -> Names:
    """Export ``run`` and publish it into the repository ``target``; models that are there already are kept.

    Returns:
        The names of the published models.

    Raises:
        ExportError: the run was fitted on another CLIP.
        ParityError: a graph does not give what PyTorch gives. Nothing was published.
    """
    if model.digest != run.clip_digest:
        raise ExportError(
            f"{run.folder} was fitted on the CLIP {run.clip_digest[:12]} ({run.clip_source}), but {model.source} is "
            f"{model.digest[:12]}: give the CLIP of the fit with --clip, or fit again"
        )
    predictor = run.load_predictor()
    target = target.resolve()  # staging lies beside it, on its file system
    names = model_names(run, model)
    sizes = Sizes(model.side, model.width, len(run.answers), len(run.answer_types))
    with repository.locked(target), workspace(target) as staging:
        new = {
            name: staging / name
            for name in (names.image, names.text, names.head)
            if not repository.is_published(target, name)
        }
        places = {name: new.get(name, target / name) for name in (names.image, names.text, names.head)}
        _write_models(new, names, sizes, run, model, predictor)
        graphs = Graphs(*(_graph(places[name]) for name in (names.image, names.text, names.head)))
        comparisons = check_parity(graphs, model, predictor, photos_and_questions(run))
        if names.head in new:
            write_json(new[names.head] / "parity.json", comparisons)
        for name, folder in new.items():
            if (target / name).exists():  # altered or half a copy: is_published refused it
                (target / name).replace(staging / f"{name}.damaged")
            publish_folder(folder, target / name)
        repository.commit(target, repository.ensemble_config(names, sizes))
    return names


def model_names(run: Run, model: FrozenClip) -> Names:
    """The names under which the models of a run are published: each says what it was made from."""
    encoders = digest_of(model.digest, EXPORT_FORMAT)[:DIGEST_LENGTH]
    head = digest_of(run.digest, EXPORT_FORMAT)[:DIGEST_LENGTH]
    return Names(
        tensors.IMAGE_ENCODER_PREFIX + encoders, tensors.TEXT_ENCODER_PREFIX + encoders, tensors.HEAD_PREFIX + head
    )


def photos_and_questions(run: Run) -> list[tuple[Path, str]]:
    """Real photos and questions to compare on: from the run's validation split, or the demo's where that is gone."""
    try:
        usable = _usable(read_split(Path(run.config["data"]["folder"]), "val", limit=PARITY_PHOTOS))
    except DatasetError:
        usable = []
    return usable or _usable(read_split(ensure_demo_dataset(), "val", limit=PARITY_PHOTOS))


def _usable(split: Split) -> list[tuple[Path, str]]:
    """The photos and questions of a split that a client could ask; a data set may hold others."""
    usable = []
    for path, record in zip(split.photo_paths(), split.records, strict=True):
        with contextlib.suppress(ImageError, QuestionError):
            load_photo(path), tokenize(record.question)
            usable.append((path, record.question))
    return usable


def _write_models(
    new: dict[str, Path], names: Names, sizes: Sizes, run: Run, model: FrozenClip, predictor: Predictor
) -> None:
    features = [torch.zeros(2, sizes.features) for _ in range(2)]  # one object given twice would become one input

    def write_image(path: Path) -> None:
        pixels = torch.zeros(2, sizes.side, sizes.side, 3, dtype=torch.uint8)
        write_graph(image_encoder(model.model), [pixels], [tensors.IMAGE], [tensors.IMAGE_FEATURES], path)

    def write_text(path: Path) -> None:
        ids = torch.zeros(2, tensors.CONTEXT_LENGTH, dtype=torch.int32)
        encoder = TextEncoder(model.model)
        write_graph(encoder, [ids], [tensors.TOKENS], [tensors.TEXT_FEATURES], path, free_length=True)

    def write_head(path: Path) -> None:
        served = ServedHead(predictor, names.head.removeprefix(tensors.HEAD_PREFIX))
        inputs = [tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES]
        write_graph(served, features, inputs, tensors.HEAD_OUTPUTS, path)
        for spec, labels in ((tensors.ANSWER, run.answers), (tensors.ANSWER_TYPE, run.answer_types)):
            repository.write_labels(path.parents[1] / f"{spec.name}.txt", labels)

    steps: Sequence[tuple[str, Callable[[Path], None], Callable[..., object]]] = (
        (names.image, write_image, repository.image_config),
        (names.text, write_text, repository.text_config),
        (names.head, write_head, repository.head_config),
    )
    todo = [step for step in steps if step[0] in new]
    for name, write, config in tqdm(todo, desc="export", unit="graph"):
        path = _graph(new[name])
        path.parent.mkdir(parents=True)
        write(path)
        repository.write_config(new[name] / repository.CONFIG_FILE, config(name, sizes, path))


def _graph(folder: Path) -> Path:
    return folder / repository.VERSION / repository.GRAPH_FILE


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.to_onnx",
        description="Export CLIP's image and text encoder and a fitted head to ONNX, check them against PyTorch, and "
        "publish them into a Triton model repository. What is published already is not exported again.",
        epilog="Next: python -m serving",
    )
    parser.add_argument("--run", type=Path, help="run folder (default: the newest in --runs)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are (default: runs)")
    parser.add_argument("--clip", help="name or checkpoint of the CLIP of the fit (default: where the fit found it)")
    parser.add_argument(
        "--repository", type=Path, default=Path("triton_models"), help="model repository (default: triton_models)"
    )
    return parser.parse_args(argv)


def run_command(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    run = read_run(arguments.run or newest_run(arguments.runs))
    print(f"run: {run.folder} ({len(run.answers)} answers, CLIP {run.clip_source})")
    names = export_run(run, load_clip(arguments.clip or run.clip_source), arguments.repository)
    print(f"published in {arguments.repository}/: {tensors.ENSEMBLE} = {names.image} + {names.text} + {names.head}")
    print("next: python -m serving")


def main(argv: list[str] | None = None) -> int:
    """Run the command; errors that have a remedy are told without a traceback, and exit with code 2."""
    try:
        run_command(parse_arguments(argv))
    except (RunError, ClipError, ExportError, ParityError, GraphError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was published before is unchanged", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
