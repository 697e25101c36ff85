"""Download VizWiz from its official site.

    python -m training.download --out VizWiz                     # train, val and test
    python -m training.download --out VizWiz --splits train val  # what a fit needs

Run it again after any interruption: what has arrived is kept. We know of no published checksums, so an archive is
checked by the size that the server states and by the CRC-32 of every file in it; its SHA-256 is written to
archives.json, and ``--sha256 train.zip=...`` holds a later download, or a folder that is there already, to it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from training.archives import ArchiveError, unpack
from training.data import DatasetError, read_split
from training.storage import disk_full_names, file_digest, write_json
from training.transfer import DownloadError, Transfer, fetch
from vizwiz_client.contract import streams

BASE_URL = "https://vizwiz.cs.colorado.edu/VizWiz_final"
ARCHIVES = {  # folder that an archive becomes -> its place under the base URL
    "Annotations": "vqa_data/Annotations.zip",
    "train": "images/train.zip",
    "val": "images/val.zip",
    "test": "images/test.zip",
}
SPLITS = ("train", "val", "test")
LEDGER = "archives.json"
_SUFFIXES = {"Annotations": (".json",), **dict.fromkeys(SPLITS, (".jpg", ".jpeg", ".png"))}


def download(
    out: Path,
    splits: tuple[str, ...] = SPLITS,
    *,
    base_url: str = BASE_URL,
    sha256: dict[str, str] | None = None,
    keep_archives: bool = False,
    transfer: Transfer | None = None,
) -> None:
    """Download and unpack the annotations and the photos of ``splits`` into the VizWiz folder ``out``.

    A folder that is there already is left alone. Each folder appears whole or not at all.

    Args:
        sha256: the digests that archives must have, by file name, such as ``train.zip``. A folder that is there already
            is held to what archives.json says of its archive.
        keep_archives: keep each archive after it is unpacked.
        transfer: how patiently to download.

    Raises:
        DownloadError: the server cannot be reached, breaks off again and again or refuses, or the disk is too small.
        ArchiveError: what arrived is damaged or not what was expected; the archive is removed, so that the next run
            fetches it again. Or a folder that is there already came from another archive than was expected, or a digest
            is given for one that is not asked for: nothing is fetched then.
        DatasetError: what was unpacked is not a readable VizWiz folder.
    """
    expected = sha256 or {}
    asked = {folder: Path(ARCHIVES[folder]).name for folder in ("Annotations", *splits)}
    if unasked := sorted(expected.keys() - asked.values()):
        raise ArchiveError(
            f"a SHA-256 is given for {', '.join(unasked)}, but asked for are {', '.join(asked.values())}: ask for more "
            "with --splits, or leave that SHA-256 out"
        )
    out.mkdir(parents=True, exist_ok=True)
    missing = {folder: name for folder, name in asked.items() if not (out / folder).exists()}
    for folder, name in asked.items():
        if folder not in missing:  # all of these first: a wrong one is told before gigabytes are fetched
            _check_present(out, folder, name, expected.get(name))
    for folder, name in missing.items():
        url = f"{base_url.rstrip('/')}/{ARCHIVES[folder]}"
        archive = out / name
        fetch(url, archive, transfer or Transfer())
        try:
            digest = _check_digest(archive, expected.get(name))
            files = unpack(archive, out / folder, _SUFFIXES[folder])
        except ArchiveError:
            archive.unlink()
            raise
        _record(out, archive, url, digest)
        print(f"{out / folder}: {files} files")
        if not keep_archives:
            archive.unlink()
    for split in splits:
        print(f"{split}: {len(read_split(out, split, labelled=split != 'test').records)} records, all photos there")


def _check_present(out: Path, folder: str, archive: str, expected: str | None) -> None:
    print(f"{out / folder}: there already")
    if expected is None:
        return
    recorded = _ledger(out).get(archive, {}).get("sha256")
    if recorded is None:
        print(
            f"{out / folder}: {LEDGER} says nothing of {archive}, so that its SHA-256 cannot be compared; delete the "
            "folder to have it fetched and compared",
            file=sys.stderr,
        )
    elif recorded != expected.lower():
        raise ArchiveError(
            f"{out / folder} was unpacked from a {archive} whose SHA-256 is {recorded}, expected {expected.lower()}: "
            "delete the folder to have it fetched again"
        )


def _check_digest(archive: Path, expected: str | None) -> str:
    digest = file_digest(archive)
    if expected is not None and digest != expected.lower():
        raise ArchiveError(f"{archive.name}: SHA-256 is {digest}, expected {expected.lower()}")
    return digest


def _record(out: Path, archive: Path, url: str, digest: str) -> None:
    entry = {"url": url, "bytes": archive.stat().st_size, "sha256": digest}
    write_json(out / LEDGER, _ledger(out) | {archive.name: entry})


def _ledger(out: Path) -> dict[str, dict[str, Any]]:
    """What is recorded of the archives that the folders of ``out`` were unpacked from, by file name."""
    ledger = out / LEDGER
    known: dict[str, dict[str, Any]] = json.loads(ledger.read_text(encoding="utf-8")) if ledger.exists() else {}
    return known


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.download",
        description="Download VizWiz (CC BY 4.0) from its official site, check it and unpack it. Run it again after an "
        "interruption: what has arrived is kept.",
        epilog="Next: python -m training.fit --data VizWiz --clip ViT-L/14@336px",
    )
    parser.add_argument("--out", type=Path, default=Path("VizWiz"), help="the VizWiz folder to make (default: VizWiz)")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS, help="whose photos to fetch (default: all three)"
    )
    parser.add_argument("--base-url", default=BASE_URL, help=f"a mirror of {BASE_URL}")
    parser.add_argument(
        "--sha256",
        nargs="+",
        action="extend",
        type=_named_digest,
        default=[],
        metavar="FILE=HEX",
        help="refuse other bytes than these, also where the folder is there already",
    )
    parser.add_argument("--keep-archives", action="store_true", help="keep the archives after they are unpacked")
    parser.add_argument(
        "--retries",
        type=int,
        default=Transfer.retries,
        help=f"attempts in a row that bring nothing (default: {Transfer.retries})",
    )
    return parser.parse_args(argv)


def _named_digest(text: str) -> tuple[str, str]:
    names = {Path(place).name for place in ARCHIVES.values()}
    name, _, digest = text.partition("=")
    if name not in names or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise argparse.ArgumentTypeError(f"expected FILE=64 hexadecimal digits, FILE one of {', '.join(sorted(names))}")
    return name, digest


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m training.download``; returns the exit status."""
    arguments = parse_arguments(argv)
    try:
        with disk_full_names(arguments.out, "--out"):
            download(
                arguments.out,
                tuple(arguments.splits),
                base_url=arguments.base_url,
                sha256=dict(arguments.sha256),
                keep_archives=arguments.keep_archives,
                transfer=Transfer(retries=arguments.retries),
            )
    except (DownloadError, ArchiveError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(streams.run(main))
