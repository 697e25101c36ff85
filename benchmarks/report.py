"""Settings, tables and sections of the benchmarks, and how sections get into docs/results.md."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from export.targets import GraphKind, cpu_name, this_machine
from training.artifacts import staged_file

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
PACKAGES = ("torch", "onnxruntime-gpu", "openvino", "nvidia-pytriton", "numpy")
FLAGS = ("avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
SEEDS = 3
MAX_LOAD = 0.5  # processes that compute, on average over a minute, beside a benchmark that is written down


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    cache: Path  # folder of checkpoints, repositories and environments, which later runs reuse
    model: str  # the large CLIP: one of OpenAI's architectures
    quick: bool = False  # few and short measurements of ViT-B/32 or the demo, to see that everything runs
    device: str = "cpu"
    write: bool = True  # docs/results.md, and its plots
    seeds: int = SEEDS  # of each recipe, in recipes and questions
    choose: bool = False  # of recipes: compare variants of `best` on a part of train, to choose its settings

    @property
    def large(self) -> str:
        """The CLIP whose figures count."""
        return "ViT-B/32" if self.quick else self.model


@dataclass(frozen=True)
class Table:
    """A table in Markdown; ``text`` comes before it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str = ""

    def __str__(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.text}\n\n{table}" if self.text else table


Section = Sequence[Table | str]


def kinds_here() -> list[GraphKind]:
    """The kinds of graphs for this machine's CPU, the slowest first: only those that it multiplies."""
    machine = this_machine()
    able = {"fp32": True, "bf16": machine.bf16, "int8": machine.int8}
    return [GraphKind("portable", precision) for precision in ("fp32", "bf16", "int8") if able[precision]]


def describe_machine() -> str:
    """CPU, cores, flags and versions of packages."""
    flags = this_machine().cpu_flags
    found = ", ".join(f"{flag} {'yes' if flag in flags else 'no'}" for flag in FLAGS)
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    return (
        f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {memory} GiB; {found}; "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


def is_busy(load: float) -> bool:
    """Whether other work disturbs what is measured."""
    return load > MAX_LOAD


def section_name(part: str) -> str:
    """Name of a part's section: hosts with AMX are reported apart."""
    return f"{part}-amx" if "amx_bf16" in this_machine().cpu_flags else part


def render(section: Section, command: str, load: float, seconds: float) -> str:
    """The text of a section: how it was measured, then its tables."""
    head = f"`{command}`, {date.today()}, {seconds:.0f} s, load average {load:.2f} at the start of the run"
    return "\n\n".join([f"{head}; {describe_machine()}.", *map(str, section)])


def replace_section(document: str, name: str, text: str) -> str:
    """``document`` with the section ``name``, which is between its markers, replaced by ``text``.

    A section of a host with AMX that is not there yet comes after the section of other hosts.

    Raises:
        ValueError: the document has no such section, or several.
    """

    def marked(section: str) -> re.Pattern[str]:
        return re.compile(rf"(<!-- bench:{section} -->\n)(.*?)(<!-- /bench:{section} -->)", re.DOTALL)

    other = name.removesuffix("-amx")
    if other != name and not marked(name).search(document):
        empty = f"\n\nWith AMX:\n\n<!-- bench:{name} -->\n<!-- /bench:{name} -->"
        document = marked(other).sub(lambda match: match[0] + empty, document)
    new, count = marked(name).subn(lambda match: f"{match[1]}{text}\n{match[3]}", document)
    if count != 1:
        raise ValueError(f"found {count} sections <!-- bench:{name} --> ... <!-- /bench:{name} -->, expected 1")
    return new


def write_section(name: str, text: str, path: Path = RESULTS) -> None:
    """Replace the section ``name`` of ``path``."""
    document = replace_section(path.read_text(encoding="utf-8"), name, text)
    with staged_file(path) as staging:
        staging.write_text(document, encoding="utf-8")
