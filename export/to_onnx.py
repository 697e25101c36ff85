"""Export CLIP's encoders and a fitted head to ONNX, check parity with PyTorch, and publish them for Triton.

    python -m export.to_onnx                        # the newest run, into triton_models/
    python -m export.to_onnx --run runs/NAME        # another run
    python -m export.to_onnx --list                 # the published models; also --check, --prune

The demo takes 8 s on two cores, and a newly fitted head 5 s: published encoders are kept.
If a graph fails parity, nothing is published.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from export.comparison import ParityError
from export.graph_builder import GraphError
from export.inventory import check_repository, describe, list_models, prune
from export.publish import ExportError, export_run
from export.targets import (
    DEVICES,
    GRAPH_KINDS,
    PRECISIONS,
    VARIANTS,
    GraphKindError,
    choose_kind,
    kinds_help,
    this_machine,
)
from serving.repository import DEFAULT_REPOSITORY, RepositoryError
from training.backbone import ClipError, load_clip
from training.dataset import DatasetError
from training.run import DEFAULT_RUNS, NoRunError, Run, RunError, newest_run, read_run
from vizwiz_client.contract import streams, tensors


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.to_onnx",
        description="Export CLIP's image and text encoder and a fitted head to ONNX, check parity with PyTorch, and\n"
        "publish them into a Triton model repository. Published encoders are kept.",
        epilog=f"{kinds_help(this_machine())}\n\nnext: python -m serving, or python -m serving reload",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, help="run folder (default: the newest in --runs)")
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="folder of runs (default: runs)")
    parser.add_argument(
        "--clip",
        action="append",
        help="name or checkpoint of a CLIP of the fit; for each, in the order of the fit (default: as in the run)",
    )
    parser.add_argument(
        "--repository", type=Path, default=DEFAULT_REPOSITORY, help="model repository (default: triton_models)"
    )
    parser.add_argument("--target", choices=DEVICES, help="device that will serve (default: that of this machine)")
    parser.add_argument("--precision", choices=PRECISIONS, help="precision of the encoders (default: see below)")
    parser.add_argument("--variant", choices=VARIANTS, help="operators of the encoders (default: see below)")
    parser.add_argument(
        "--recheck",
        action="store_true",
        help="compare published encoders with PyTorch once more: after an update of ONNX Runtime, or on the machine "
        "that will serve",
    )
    instead = parser.add_argument_group("instead of exporting").add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="list the models of the repository and their origin")
    instead.add_argument(
        "--check",
        action="store_true",
        help="check that the repository is complete and serves the run (where there is one); exit code 1 if not",
    )
    instead.add_argument(
        "--prune",
        action="store_true",
        help="remove the models that the ensemble does not reference; `python -m serving reload --to` then cannot go "
        "back to them",
    )
    parser.add_argument("--json", action="store_true", help="print the result of --list or --check as JSON")
    arguments = parser.parse_args(argv)
    if arguments.json and not (arguments.list or arguments.check):
        parser.error("--json goes with --list or --check")
    return arguments


def run_command(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if arguments.list:
        entries = list_models(arguments.repository)
        print(json.dumps([asdict(entry) for entry in entries], indent=2) if arguments.json else describe(entries))
        return 0
    if arguments.check:
        return _check(arguments)
    if arguments.prune:
        for entry in (removed := prune(arguments.repository)):
            print(f"removed {entry.name}")
        print(f"{sum(entry.bytes for entry in removed) / (1 << 20):.1f} MiB freed")
        return 0
    run = read_run(arguments.run or newest_run(arguments.runs))
    fitted = [clip["source"] for clip in run.clips]
    print(f"run: {run.folder} ({len(run.answers)} answers, CLIP {' and '.join(fitted)})")
    kind = choose_kind(arguments.variant, arguments.precision, this_machine(), arguments.target)
    print(f"graphs: {kind.device} {kind.variant} {kind.precision}: {GRAPH_KINDS[kind]} (--help lists the others)")
    if limit := run.config["data"].get("limit"):
        print(f"warning: a trial run, fitted with --limit {limit}", file=sys.stderr)
    run.check_clips(arguments.clip or fitted)
    clips = [load_clip(source) for source in arguments.clip] if arguments.clip else fitted  # a named one is verified
    names = export_run(run, clips, arguments.repository, kind, recheck=arguments.recheck)
    print(f"published in {arguments.repository}/: {tensors.ENSEMBLE} = {' + '.join(names.all)}")
    place = "" if arguments.repository == DEFAULT_REPOSITORY else f" --repository {arguments.repository}"
    print(f"next: python -m serving{place}, or python -m serving reload where a server runs from there already")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    run = _run_to_check(arguments)
    found = check_repository(arguments.repository, run)
    if arguments.json:
        print(json.dumps({"run": run and str(run.folder), "ok": not found, "problems": found}, indent=2))
    else:
        print(f"{arguments.repository}: {f'against {run.folder}' if run else 'alone, no run found'}")
        print("\n".join(f"  {problem}" for problem in found) or "  ok")
    return 1 if found else 0


def _run_to_check(arguments: argparse.Namespace) -> Run | None:
    """The run of --run, or the newest; None on a machine without runs."""
    if arguments.run:
        return read_run(arguments.run)
    try:
        return read_run(newest_run(arguments.runs))
    except NoRunError:
        return None


def main(argv: list[str] | None = None) -> int:
    """Run the command; errors with a remedy are printed without a traceback, with exit code 2."""
    arguments = parse_arguments(argv)
    try:
        return run_command(arguments)
    except (
        RunError,
        ClipError,
        ExportError,
        ParityError,
        GraphError,
        RepositoryError,
        GraphKindError,
        DatasetError,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        unchanged = "some models may be removed already" if arguments.prune else "published models are unchanged"
        print(f"stopped; {unchanged}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(streams.run(main))
