"""The server beside its peers: LitServe, FastAPI with PyTorch, and the bare encoders; infinity is in infinity.py.

    python -m benchmarks peers

Same random weights, same photos, one run, all servers up at once and measured in turn, the others stopped. The first
run installs the peers, at the versions of peers_requirements.txt, into an environment of their own, which reads PyTorch
from this one.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.encoders import in_a_process
from benchmarks.report import Section, Settings, Table, kinds_here
from benchmarks.serving.load import BARE, GATEWAY, LITSERVE
from benchmarks.serving.measure import Measured, System, measure
from benchmarks.serving.servers import Served, drawn_photos, fastapi, http_server, prepare, triton
from vizwiz_client.contract import tensors

REQUIREMENTS = Path(__file__).with_name("peers_requirements.txt")
CONCURRENCY = 16
OURS = "ours"


def run(settings: Settings) -> Section:
    """Measure the systems that answer a question about a photo: one at a time, and 16 at once."""
    name, python = settings.large, install(settings.cache / "peers")
    served = prepare_kinds(settings)
    fp32 = served["fp32"]
    rates = in_a_process("cpu", "rates")  # before any server runs beside it
    systems: list[System] = []
    with ExitStack() as stack:
        for precision, each in served.items():
            server = stack.enter_context(triton(each, gateway=True))
            systems += [
                System(BARE, precision, BARE, each),
                System(OURS, precision, tensors.ENSEMBLE, each, server),
                System(f"{OURS}, gateway", precision, GATEWAY, each, server, server.gateway),
            ]
        for bf16 in (False, True)[: 1 + ("bf16" in served)]:
            server = stack.enter_context(fastapi(fp32, bf16=bf16))
            systems.append(System("FastAPI", "bf16" if bf16 else "fp32", "fastapi", fp32, server))
        options = [f"--checkpoint={fp32.checkpoint.resolve()}", f"--run={fp32.run.resolve()}"]
        server = stack.enter_context(
            http_server(["-m", "benchmarks.serving.litserve_baseline", *options], "/health", str(python))
        )
        systems.append(System("LitServe", "fp32", LITSERVE, fp32, server))
        text = (
            f"{name} size, random weights, photos of 640 x 480 with a question. Ours gets decoded photos; the gateway, "
            "FastAPI and LitServe decode JPEGs. Both rows of ours are one server, gateway included."
        )
        return compare(systems, settings, rates, text)


def prepare_kinds(settings: Settings) -> dict[str, Served]:
    """The large CLIP in every precision that this CPU multiplies."""
    return {kind.precision: prepare(settings.large, settings.cache, kind) for kind in kinds_here()}


def compare(systems: Sequence[System], settings: Settings, rates: Mapping[str, float], text: str) -> Section:
    """Measure ``systems`` in turn, and report them beside the matrix ``rates`` of this machine: ratios first."""
    photos = drawn_photos(settings.cache) / "train"
    alone = measure(systems, photos, 1, 1.0, rounds=1 if settings.quick else 5, min_requests=2)
    loaded = [each for each in systems if is_loaded(each)]
    at_once = measure(loaded, photos, CONCURRENCY, 0, rounds=1 if settings.quick else 3, requests=CONCURRENCY)
    listed = (f"{kind} {rate:,.0f} ({rate / rates['fp32']:.1f} x fp32)" for kind, rate in rates.items())
    text += (
        " Servers and load generator share the cores. CPU and memory are those of one question at a time. Matrix "
        f"rates, G operations/s: {', '.join(listed)}."
    )
    return report(systems, alone, dict(zip(loaded, at_once, strict=True)), text)


def is_loaded(system: System) -> bool:
    """Whether to measure ``system`` with many requests at once: of the gateway, the fastest type is enough."""
    if system.name == BARE:
        return False
    return system.name != GATEWAY or system.precision == kinds_here()[-1].precision


def report(systems: Sequence[System], alone: Sequence[Measured], at_once: dict[System, Measured], text: str) -> Section:
    """The table: ratios first."""
    bare = {each.precision: found.p50_ms for each, found in zip(systems, alone, strict=True) if each.name == BARE}
    rows = []
    for each, one in zip(systems, alone, strict=True):
        many = at_once.get(each)
        peers = [
            found.per_s
            for peer, found in at_once.items()
            if not peer.label.startswith(OURS) and peer.precision in (each.precision, "fp32")
        ]
        compared = many and each.label.startswith(OURS) and peers
        added = one.p50_ms - bare[each.precision] if each.precision in bare and each.name != BARE else None
        rows.append(
            [
                each.label,
                each.precision,
                f"{many.per_s / max(peers):.2f} x" if compared and many else "",
                f"{added:+.1f} ms, {added / bare[each.precision]:+.0%}" if added is not None else "",
                f"{many.per_s:.3g}" if many else "",
                f"{one.p50_ms:,.1f} ms",
                f"{many.p50_ms:,.0f} ms" if many else "",
                f"{one.cpu_ms:,.0f} ms",
                f"{one.memory_gb:.1f} GB",
                str(one.errors + (many.errors if many else 0)),
            ]
        )
    header = (
        *("system", "type", "questions/s of 16 at once: / best peer", "p50 added to the bare encoders"),
        *("questions/s of 16 at once", "p50 of one", "p50 of 16 sent at once", "CPU a question", "memory", "errors"),
    )
    return [Table(header, rows, text), f"Peers: {', '.join(installed())}."]


def install(folder: Path) -> Path:
    """Make the peers' environment, unless it is there; returns its Python."""
    python, done = folder / "venv" / "bin" / "python", folder / "requirements.txt"
    if not done.exists() or done.read_bytes() != REQUIREMENTS.read_bytes():
        print(f"installing the peers into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], check=True)
        [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
        (packages / "torch-of-the-project.pth").write_text(sysconfig.get_path("purelib"))
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS)]
        subprocess.run(pip, check=True)
        done.write_bytes(REQUIREMENTS.read_bytes())
    return python.absolute()


def installed() -> list[str]:
    """Names and versions of the peers."""
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    return [line.replace("==", " ") for line in lines if "==" in line]
