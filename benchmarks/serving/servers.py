"""Models and processes of the load benchmark: exported repositories, the servers, and the load generator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import psutil
import torch

from benchmarks.architectures import write_full_size
from benchmarks.serving.load import Job, Record
from demo import DEMO_CLIP, ensure_demo_dataset
from export.publish import EXPORT_FORMAT, export_run
from export.targets import GraphKind, recommend, this_machine
from serving import launch
from serving.access import LOOPBACK, claim_ports
from serving.repository import GRAPH_FILE, VERSION, read_config
from training.artifacts import staged_folder
from training.backbone import FrozenClip, load_clip
from training.dataset import read_split
from training.fit import fit
from training.model import ClipEnsemble, GatedHead, Predictor
from training.recipe import Recipe
from training.run import RUN_FORMAT, Run, newest_run, read_run, write_run
from vizwiz_client.contract import tensors

ANSWERS = 5_860  # V of the 2023 report's head
FULL_VOCABULARY = f"runs-full-vocabulary-{RUN_FORMAT}"  # folder of runs
FITTED_RECORDS = 8  # of a head whose answers differ, so that bf16 does not change them
UNUSED_ANSWER_BIAS = -60.0  # of an answer that fills the vocabulary: it costs what any answer costs, and never wins
READY_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60
ANSWER_TIMEOUT_S = "600"  # of the gateway: what it gives up on, Triton computes all the same, beside the next system


@dataclass(frozen=True)
class Served:
    """A model that is ready to serve."""

    name: str
    checkpoint: Path
    run: Path
    repository: Path
    target: GraphKind  # of the encoders in the repository
    image_size: int  # S in pixels

    def model(self, prefix: str) -> str:
        """The Triton model of the ensemble whose name begins with ``prefix``."""
        steps = read_config(self.repository / tensors.ENSEMBLE).ensemble_scheduling.step
        return next(str(step.model_name) for step in steps if step.model_name.startswith(prefix))

    def graph(self, prefix: str) -> Path:
        """The ONNX file of that model."""
        return self.repository / self.model(prefix) / VERSION / GRAPH_FILE


def prepare(name: str, cache: Path, kind: GraphKind | None = None) -> Served:
    """Write a checkpoint with random weights, fit a head and export both into ``cache``, unless they are there.

    Args:
        name: "demo", or one of OpenAI's architectures.
        cache: folder for checkpoints, runs and repositories.
        kind: of the encoders' graphs; default: as export recommends for this machine's CPU.
    """
    folder = cache / name.replace("/", "-")
    target = kind or recommend(replace(this_machine(), cuda=False))[0]
    checkpoint = DEMO_CLIP if name == "demo" else folder / "clip.pt"
    folder.mkdir(parents=True, exist_ok=True)
    if not checkpoint.exists():
        write_full_size(name, checkpoint)
    repository = folder / f"models-{target.name}-{EXPORT_FORMAT}"
    with redirect_stdout(sys.stderr):
        runs = folder / FULL_VOCABULARY
        if not any(runs.glob("[!.]*/run.json")):
            _fit_full_vocabulary(load_clip(checkpoint), folder, drawn_photos(cache))
        run = read_run(newest_run(runs))
        if not (repository / tensors.ENSEMBLE).exists():
            export_run(run, str(checkpoint), repository, target)
    return Served(name, checkpoint, run.folder, repository, target, int(run.clips[0]["image_size"]))


def drawn_photos(cache: Path) -> Path:
    """A small VizWiz folder of drawn photos, 640 x 480 pixels."""
    return ensure_demo_dataset(cache / "data", train=48, val=FITTED_RECORDS, test=0)


def _fit_full_vocabulary(clip: FrozenClip, folder: Path, data: Path) -> None:
    """Fit a head on a few photos, and write it as a run with :data:`ANSWERS` answers."""
    train, val = (read_split(data, split, limit=FITTED_RECORDS) for split in ("train", "val"))
    run = read_run(fit(train, val, clip, Recipe(epochs=20), folder / "runs", folder / "features"))
    answers = run.answers + [f"filler {number}" for number in range(ANSWERS - len(run.answers))]
    config = {key: value for key, value in run.config.items() if key not in ("format", "files")}
    with staged_folder(folder / FULL_VOCABULARY / run.folder.name) as staging:
        write_run(staging, config, ClipEnsemble([Predictor([_with_full_vocabulary(run)])]), answers)


def _with_full_vocabulary(run: Run) -> GatedHead:
    state = run.load_ensemble().state_dict()
    first = "members.0.heads.0."
    weights = {name.removeprefix(first): tensor for name, tensor in state.items() if name.startswith(first)}
    head = GatedHead(run.clips[0]["embed_dim"], ANSWERS, len(run.answer_types)).eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in head.state_dict().items():
            if parameter.shape == weights[name].shape:
                parameter.copy_(weights[name])
                continue
            parameter.fill_(UNUSED_ANSWER_BIAS if name == "answer.2.bias" else 0.0)
            parameter[: len(run.answers)] = weights[name]
    return head


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str  # of gRPC, or of HTTP
    pid: int  # of the root of its processes
    gateway: str | None = None  # URL


@contextmanager
def triton(served: Served, *, gateway: bool = False, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """The embedded server, by its own command; with ``gateway``, :attr:`Server.gateway` is its address."""
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "gateway")]
    options = [
        f"--repository={served.repository}",
        "--json",
        "--gateway" if gateway else "--no-gateway",
        *ports,
    ]
    environment = {"VIZWIZ_GATEWAY_ANSWER_TIMEOUT": ANSWER_TIMEOUT_S, **(environment or {})}
    with _started(["-m", "serving", *options], stdout=subprocess.PIPE, environment=environment) as process:
        addresses = json.loads(_first_line(process))
        _wait_until_answering(addresses["metrics"], process)  # Triton listens there last
        yield Server(addresses["grpc"], process.pid, addresses["gateway"])


@contextmanager
def gateway_of(triton_url: str) -> Iterator[Server]:
    """Another gateway in front of the Triton at ``triton_url``."""
    with _started(
        ["-m", "vizwiz_gateway", f"--triton={triton_url}", "--port=0", "--json"], stdout=subprocess.PIPE
    ) as process:
        url = json.loads(_first_line(process))["gateway"]
        _wait_until_answering(f"{url}/healthz", process)
        yield Server(url, process.pid, url)


@contextmanager
def http_server(command: list[str], health: str, python: str = sys.executable) -> Iterator[Server]:
    """A server of HTTP: ``command`` without its port, and the path that answers when it is ready."""
    [port] = claim_ports({"--port": 0}, {"--port": LOOPBACK}).values()
    offline = {"HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
    root = Path(__file__).parents[2]
    offline["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "client"), os.environ.get("PYTHONPATH", "")])
    with _started([*command, f"--port={port}"], environment=offline, python=python) as process:
        url = f"http://{LOOPBACK}:{port}"
        _wait_until_answering(f"{url}{health}", process)
        yield Server(url, process.pid)


def fastapi(served: Served, *, bf16: bool) -> AbstractContextManager[Server]:
    """The FastAPI baseline (fastapi_baseline.py)."""
    options = [f"--checkpoint={served.checkpoint}", f"--run={served.run}", *["--bf16"] * bf16]
    return http_server(["-m", "benchmarks.serving.fastapi_baseline", *options], "/health")


class Generator:
    """A process that generates load, as a context manager."""

    def __enter__(self) -> Generator:
        self._running = _started(["-m", "benchmarks.serving.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process = self._running.__enter__()
        self.pid = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        self._running.__exit__(None, None, None)

    def run(self, job: Job) -> Record:
        """Run ``job`` there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(job)), file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise SystemExit(f"the load generator ended with exit status {self._process.wait()}; see above")
        return Record(**json.loads(line))


@contextmanager
def _started(
    arguments: list[str],
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[str] | None = None,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Iterator[subprocess.Popen[str]]:
    """A Python process that ends with this one."""
    process = subprocess.Popen(
        [sys.executable, launch.__file__, str(os.getpid()), python, *arguments],
        stdin=stdin,
        stdout=stdout,
        text=True,
        env={**os.environ, **(environment or {})},
        # Linux shares the cores between sessions first (sched_autogroup); Triton has a session of its own
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            descendants = []
            with suppress(psutil.NoSuchProcess):
                descendants = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            process.kill()
            for each in descendants:  # LitServe leaves the process that computes behind
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise SystemExit(f"the server ended with exit status {process.wait()}; its messages are above")
    return line


def _wait_until_answering(url: str, process: subprocess.Popen[str]) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        with suppress(OSError):
            direct.open(url, timeout=10).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{url} does not answer; the server's messages are above")
        time.sleep(0.1)


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """Stop the processes ``pids`` and their descendants meanwhile (SIGSTOP): an idle server computes a little too."""
    processes = [each for pid in pids for each in _tree(pid)]
    try:
        for each in processes:
            each.suspend()
        yield
    finally:
        for each in processes:
            each.resume()


@dataclass(frozen=True)
class Usage:
    """Processor time and memory of a process and its descendants."""

    cpu_s: float
    memory: int  # bytes resident, summed: what they share counts for each


def usage(*pids: int) -> Usage:
    """What the processes ``pids`` and their descendants use now."""
    cpu_s, memory = 0.0, 0
    for process in (each for pid in pids for each in _tree(pid)):
        with suppress(psutil.NoSuchProcess), process.oneshot():
            times = process.cpu_times()
            cpu_s += times.user + times.system
            memory += process.memory_info().rss
    return Usage(cpu_s, memory)


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]
