"""Fit, export, serve and ask, on the demo data.

    make demo

Runs the project's own commands, with a Triton server on free ports. Leaves ``img.jpg``, a photo to ask about, in the
checkout. Takes one to four minutes on two cores, after the installation of packages.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from demo import ensure_demo_dataset
from training.dataset import Record, read_split
from training.labels import majority_answer
from vizwiz_client.contract import streams

PHOTOS = 8
INTERRUPTED = 130  # the exit code after Ctrl-C
FREE_PORTS = ["--gateway-port", "0", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]


def main() -> int:
    """Run the commands, and print questions with their answers."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run("-m", "training.fit")
    run("-m", "export.to_onnx")
    data = ensure_demo_dataset()
    records = choose(read_split(data, "val").records)
    shutil.copy(data / "val" / records[0].image, "img.jpg")
    with server() as grpc_url:
        print("\nquestions and answers, through Triton:")
        for record in records:
            print(f"  {data / 'val' / record.image}")
            print(f"    question: {record.question}")
            print(f"    answer:   {ask(data / 'val' / record.image, record.question, grpc_url)}")
            print(f"    people:   {majority_answer(record)}")
    print("\nnext: `source .venv/bin/activate`, `python -m serving`; open http://localhost:8080 and ask about img.jpg")
    return 0


def choose(records: Sequence[Record]) -> list[Record]:
    """Select records with different answers: one asks what something is, the next one's photo cannot answer."""
    first = next(r for r in records if r.answer_type == "other" and r.question.lower().startswith("what is this"))
    second = next(r for r in records if not r.answerable)
    chosen = {majority_answer(first): first, majority_answer(second): second}
    for record in records:
        chosen.setdefault(majority_answer(record), record)
    return list(chosen.values())[:PHOTOS]


def run(*arguments: str) -> None:
    """Print and run a Python command."""
    print(f"\n$ python {' '.join(arguments)}", flush=True)
    command = [sys.executable, *arguments]
    if code := subprocess.run(command).returncode:
        raise SystemExit(_exit_code(command, code))


@contextmanager
def server() -> Iterator[str]:
    """Serve triton_models/ on free ports; yields the gRPC address."""
    print("\n$ python -m serving", flush=True)
    command = [sys.executable, "-m", "serving", "--json", *FREE_PORTS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(_exit_code(command, process.wait() or 1))
        yield json.loads(line)["grpc"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def ask(photo: Path, question: str, url: str) -> str:
    """Ask with the command, and return the line it prints."""
    client = str(Path(sys.executable).with_name("vizwiz-client"))
    command = [client, "ask", str(photo), question, "--url", url, "--quiet"]  # its note is for real photos
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(_exit_code(command, done.returncode))
    return done.stdout.strip()


def _exit_code(command: Sequence[str], code: int) -> int:
    """The exit code of a command that failed, which has printed the cause, unless a signal ended it."""
    if code > 0:
        return code
    print(f"error: {signal.Signals(-code).name} ended {' '.join(command[1:])}", file=sys.stderr)
    return 128 - code


if __name__ == "__main__":
    try:
        raise SystemExit(streams.run(main))
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
