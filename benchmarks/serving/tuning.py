"""Other settings of the encoders, each served and asked in turn with the published ones; ratios are what to look at.

    python -m benchmarks.serving.tuning triton_models                        # a few minutes, for a small CLIP
    python -m benchmarks.serving.tuning triton_models --concurrency 1 16 64

Run it on the machine that serves. Nothing in the repository is changed: each setting is served from a copy that shares
its graphs. To take one over, edit ``instance_group``, ``dynamic_batching`` or the parameter ``nice`` in the encoders'
config.pbtxt, or the option ``--threads`` of ``python -m serving``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.job import Job
from benchmarks.serving.processes import Generator, triton
from benchmarks.serving.statistics import summarise
from export.repository import write_config_file
from export.triton_config import CONFIG_FILE
from serving import ServingError
from serving.repository import check_repository, read_config
from vizwiz_client.contract import tensors

MOST_PER_SECOND = 2_000  # requests that are prepared for a second of measuring
ENCODERS = (tensors.IMAGE_ENCODER_PREFIX, tensors.TEXT_ENCODER_PREFIX)


@dataclass(frozen=True)
class Setting:
    """One way to serve the same graphs."""

    name: str
    change: Callable[[Any], None] = lambda config: None  # of an encoder's configuration
    threads: int | None = None  # of each model


@dataclass
class Column:
    """What was measured of a setting at one concurrency, a figure a round."""

    p50_ms: list[float] = field(default_factory=list)
    questions_per_s: list[float] = field(default_factory=list)


def settings(cores: int) -> list[Setting]:
    """The published setting first, then what might be better than it on ``cores`` cores."""
    others = [
        Setting(f"{count} instances, threads each: {max(cores // count, 1)}", _instances(count), max(cores // count, 1))
        for count in sorted({2, cores} - {1})
    ]
    others += [Setting("half the threads for each model", threads=cores // 2)] if cores > 1 else []
    others += [Setting(f"waiting up to {delay} ms for a batch", _delay(delay)) for delay in (2, 10)]
    others += [Setting(f"{size} at once preferred", _preferred(size)) for size in (4, 16)]
    others += [Setting("equal shares of the cores", _equal)]
    return [Setting("as published"), *others]


def _instances(count: int) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        config.instance_group[0].count = count

    return change


def _delay(milliseconds: int) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        config.dynamic_batching.max_queue_delay_microseconds = 1_000 * milliseconds

    return change


def _preferred(size: int) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        config.dynamic_batching.preferred_batch_size[:] = [size]

    return change


def _equal(config: Any) -> None:
    config.parameters.pop(tensors.NICE_PARAMETER, None)


def main() -> None:
    """Run the benchmark."""
    arguments = _parser().parse_args()
    try:
        check_repository(arguments.repository)
    except ServingError as error:
        raise SystemExit(f"python -m benchmarks.serving.tuning: {error}") from None
    published, *others = settings(len(os.sched_getaffinity(0)))
    wanted = tuple(arguments.setting or [""])
    chosen = [published, *(each for each in others if each.name.startswith(wanted))]
    if chosen == [published]:
        raise SystemExit(f"no setting begins so; there are: {'; '.join(each.name for each in others)}")
    measured = {(each.name, concurrency): Column() for each in chosen for concurrency in arguments.concurrency}
    generator = Generator()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for number, setting in enumerate(chosen):
                repository = Path(folder, str(number))
                if not repository.exists():
                    copy_changed(arguments.repository, repository, setting)
                with triton(repository, setting.threads) as server:
                    for concurrency in arguments.concurrency:
                        job = _job(arguments, server.url, concurrency, turn)
                        figures = summarise(job, [generator.run(job)])
                        _keep(measured[setting.name, concurrency], figures)
    generator.close()
    print("\n".join(table(chosen, arguments.concurrency, measured)))


def copy_changed(repository: Path, copy: Path, setting: Setting) -> None:
    """Make ``copy`` a repository that serves the graphs of ``repository`` as ``setting`` says; its files are linked."""
    copy.mkdir()
    for model in sorted(each for each in repository.iterdir() if (each / CONFIG_FILE).is_file()):
        (copy / model.name).mkdir()
        for entry in model.iterdir():
            if entry.name != CONFIG_FILE:
                (copy / model.name / entry.name).symlink_to(entry.resolve())
        config = read_config(model)
        if model.name.startswith(ENCODERS):
            setting.change(config)
        write_config_file(copy / model.name / CONFIG_FILE, config)


def _job(arguments: argparse.Namespace, url: str, concurrency: int, turn: int) -> Job:
    config = read_config(arguments.repository / tensors.ENSEMBLE)
    [side] = [tensor.dims[0] for tensor in config.input if tensor.name == tensors.IMAGE.name]
    seconds = arguments.seconds
    return Job(
        tensors.ENSEMBLE,
        str(arguments.photos),
        side,
        url=url,
        concurrency=concurrency,
        # the response cache is to know no question: others each time, and enough of them
        seed=zlib.crc32(f"{turn} {concurrency}".encode()),
        prepared=int(MOST_PER_SECOND * seconds),
        ramp=2 * concurrency,  # the first batches of a server are not as its usual ones
        seconds=seconds,
        least=2 * concurrency,
    )


def _keep(column: Column, figures: dict[str, Any]) -> None:
    if figures["errors"] or "p50_ms" not in figures:
        raise SystemExit(f"the server answered {figures['errors']} requests with an error: {figures.get('error')}")
    column.p50_ms.append(figures["p50_ms"])
    column.questions_per_s.append(figures["questions_per_s"])


def table(
    chosen: Sequence[Setting], concurrencies: Sequence[int], measured: dict[tuple[str, int], Column]
) -> list[str]:
    """The lines of a table: medians over the rounds, and the ratio to the first setting's in the same round."""
    heads = [f"{what} at {number}" for number in concurrencies for what in ("p50 ms", "questions/s")]
    lines = [f"| encoders | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for setting in chosen:
        cells = []
        for concurrency in concurrencies:
            ours, published = measured[setting.name, concurrency], measured[chosen[0].name, concurrency]
            cells += [_cell(ours.p50_ms, published.p50_ms), _cell(ours.questions_per_s, published.questions_per_s)]
        lines.append(f"| {setting.name} | {' | '.join(cells)} |")
    return lines


def _cell(values: Sequence[float], published: Sequence[float]) -> str:
    ratio = statistics.median(ours / theirs for ours, theirs in zip(values, published, strict=True))
    return f"{statistics.median(values):,.3g} ({ratio:.2f} x)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", type=Path, help="the model repository that is served")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 16], help="default: 1 16")
    parser.add_argument("--setting", nargs="+", help="beginnings of those to compare with the published (default: all)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of all settings (default: %(default)s)")
    parser.add_argument(
        "--photos", type=Path, default=Path("data/demo/train"), help="JPEG files (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    main()
