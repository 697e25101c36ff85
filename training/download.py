"""Download VizWiz from its official site.

    python -m training.download --out VizWiz                     # train, val and test
    python -m training.download --out VizWiz --splits train val  # enough for a fit
    python -m training.download --out VizWiz --quality           # the votes on photo quality too

After an interruption, the same command resumes. VizWiz publishes no checksums, so an archive is checked by its size and
by the CRC-32 of every file in it. Its SHA-256 is recorded in archives.json; ``--sha256 train.zip=...`` verifies it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import ssl
import string
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, InvalidURL
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from tqdm import tqdm

from training.artifacts import explain_full_disk, file_digest, staged_folder, write_json
from training.dataset import DatasetError, read_split
from training.quality import QUALITY_FOLDER, read_votes
from vizwiz_client.contract import streams

BASE_URL = "https://vizwiz.cs.colorado.edu/VizWiz_final"
ARCHIVES = {  # folder that an archive is unpacked to -> path of the archive below the base URL
    "Annotations": "vqa_data/Annotations.zip",
    "train": "images/train.zip",
    "val": "images/val.zip",
    "test": "images/test.zip",
}
# VizWiz-QualityIssues (Chiu et al., CVPR 2020), from its authors' repository at the commit of their last change to it
QUALITY_URL = (
    "https://raw.githubusercontent.com/chiutaiyin/VizWiz-QualityIssues/910ac4e4b5cdb85e63bbb1f44f889fae0aa6f621/"
    "annotations/quality_annotations"
)
SPLITS = ("train", "val", "test")
MANIFEST = "archives.json"  # in the VizWiz folder: URL, bytes and SHA-256 of each archive
_SUFFIXES = {"Annotations": (".json",), **dict.fromkeys(SPLITS, (".jpg", ".jpeg", ".png"))}
_BLOCK = 1 << 20  # bytes
_TIMEOUT_S = 60.0  # without a byte
_MAX_WAIT_S = 60.0  # between two attempts
_RETRYABLE_STATUSES = (408, 425, 429, 500, 502, 503, 504)
_NETWORK_ERRORS = (URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


class DownloadError(Exception):
    """A file that cannot be downloaded."""


class ArchiveError(DownloadError):
    """An archive that is damaged or not the expected one."""


def download(
    out: Path,
    splits: tuple[str, ...] = SPLITS,
    *,
    base_url: str = BASE_URL,
    sha256: dict[str, str] | None = None,
    retries: int = 8,
    wait_s: float = 1.0,
) -> None:
    """Download and unpack the annotations and the photos of ``splits``.

    Folders that exist are kept. Each folder appears complete or not at all.

    Args:
        out: the VizWiz folder to make.
        splits: whose photos to download.
        base_url: the official site, or a mirror.
        sha256: expected digests by archive name, such as ``train.zip``. For a folder that exists, the digest in
            archives.json is compared.
        retries: attempts in a row without a new byte, after which an archive is given up.
        wait_s: seconds before the second attempt; doubles with each, up to 60.

    Raises:
        DownloadError: the server fails or refuses, the disk is too small, or another process downloads into ``out``.
        ArchiveError: an archive is damaged or has another digest; it is deleted, so the next run downloads it again.
        DatasetError: the unpacked folder is not a valid VizWiz folder.
    """
    expected = sha256 or {}
    names = {folder: Path(ARCHIVES[folder]).name for folder in ("Annotations", *splits)}
    if unknown := sorted(expected.keys() - names.values()):
        raise ArchiveError(
            f"--sha256 names {', '.join(unknown)}, but this command downloads {', '.join(names.values())}: add the "
            "split to --splits, or drop the digest"
        )
    out.mkdir(parents=True, exist_ok=True)
    with _only_process(out):
        _download_missing(out, names, base_url, expected, retries, wait_s)
    for split in splits:
        print(f"{split}: {len(read_split(out, split, labelled=split != 'test').records)} records, no photo is missing")


@contextmanager
def _only_process(out: Path) -> Iterator[None]:
    """Lock ``out``: two processes would write the same partial archive."""
    lock = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(
                f"another process downloads into {out}: when it has ended, run the command again"
            ) from None
        except OSError:  # a file system without locks: nothing shows whether another process downloads
            pass
        yield
    finally:
        os.close(lock)


def _download_missing(
    out: Path, names: dict[str, str], base_url: str, expected: dict[str, str], retries: int, wait_s: float
) -> None:
    """Download and unpack the archives of the folders ``names`` that are missing."""
    missing = {folder: name for folder, name in names.items() if not (out / folder).exists()}
    for folder in names.keys() - missing.keys():  # before the downloads, which take hours
        _check_existing(out, folder, names[folder], expected.get(names[folder]))
    for folder, name in missing.items():
        url, archive = f"{base_url.rstrip('/')}/{ARCHIVES[folder]}", out / name
        fetch(url, archive, retries=retries, wait_s=wait_s)
        try:
            digest = file_digest(archive)
            if digest != expected.get(name, digest).lower():
                raise ArchiveError(f"{name}: SHA-256 is {digest}, expected {expected[name].lower()}")
            files = unpack(archive, out / folder, _SUFFIXES[folder])
        except ArchiveError:
            archive.unlink()
            raise
        entry = {"url": url, "bytes": archive.stat().st_size, "sha256": digest}
        write_json(out / MANIFEST, _read_manifest(out) | {name: entry})
        print(f"{out / folder}: {files} files")
        archive.unlink()


def download_quality(out: Path, *, url: str = QUALITY_URL, retries: int = 8, wait_s: float = 1.0) -> None:
    """Download people's votes on photo quality into ``out/Quality``, which appears complete or not at all.

    Args:
        out: the VizWiz folder.
        url: where ``train.json`` and ``val.json`` are.
        retries: as for :func:`fetch`.
        wait_s: as for :func:`fetch`.

    Raises:
        DownloadError: the server fails or refuses.
        DatasetError: a file does not hold votes.
    """
    folder = out / QUALITY_FOLDER
    if folder.exists():
        print(f"{folder}: exists, not downloaded again")
        return
    with staged_folder(folder) as staging:
        for name in ("train.json", "val.json"):
            fetch(f"{url.rstrip('/')}/{name}", staging / name, retries=retries, wait_s=wait_s)
            print(f"{folder / name}: votes on {len(read_votes(staging / name)):,} photos")


def fetch(url: str, path: Path, *, retries: int = 8, wait_s: float = 1.0) -> None:
    """Download ``url`` to ``path``; a partial download in ``path``.part is resumed.

    Args:
        url: of the file.
        path: where the complete file goes; an existing file is kept.
        retries: attempts in a row without a new byte, after which the download is given up.
        wait_s: seconds before the second attempt; doubles with each, up to 60.

    Raises:
        DownloadError: ``url`` is no web address, no attempt succeeded, the server refuses, or the disk is too small.
    """
    if path.exists():
        return
    if not url.lower().startswith(("https://", "http://")):
        raise DownloadError(
            f"got the address {url}, expected https://... or http://...; check --base-url and --quality-url"
        )
    url = quote(url, safe=string.punctuation)  # http.client refuses letters beyond ASCII
    part = path.with_name(f"{path.name}.part")
    failures, largest = 0, _size(part)
    while True:
        try:
            _transfer(url, part)
            break
        except InvalidURL as error:
            raise DownloadError(f"{url}: {error}; check --base-url and --quality-url") from error
        except _NETWORK_ERRORS as error:
            reason = f"HTTP status {error.code}" if isinstance(error, HTTPError) else str(error)
            if isinstance(error, HTTPError) and error.code not in _RETRYABLE_STATUSES:
                raise DownloadError(f"{url}: the server answers with {reason}; check --base-url") from error
            if _size(part) > largest:  # than ever: a server without ranges sends the same bytes again and again
                failures, largest = 0, _size(part)
            failures += 1
            if failures >= retries:
                raise DownloadError(
                    f"{url}: gave up after {failures} attempts without a new byte ({reason}); {_size(part)} bytes are "
                    "kept, the same command resumes"
                ) from error
            pause_s = min(wait_s * 2 ** (failures - 1), _MAX_WAIT_S)
            tqdm.write(f"{path.name}: {reason}; trying again in {pause_s:g} s")
            time.sleep(pause_s)
    part.replace(path)


def _transfer(url: str, part: Path) -> None:
    """Append the rest of ``url`` to ``part``, as far as one response goes."""
    start = _size(part)
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(request, timeout=_TIMEOUT_S)
    except HTTPError as error:
        if error.code == 416 and start:  # nothing after ``start``: the file is complete
            return
        raise
    with response:
        if url.startswith("https:") and not response.url.startswith("https:"):
            raise DownloadError(f"{url}: the server redirects to {response.url}, which is not encrypted")
        start = start if response.status == 206 else 0  # else the server sends the whole file
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        _check_space(part.parent, (total or start) - start)
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None) as progress,
        ):
            while block := response.read1(_BLOCK):
                file.write(block)
                progress.update(len(block))
    if total is not None and _size(part) < total:
        raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def unpack(archive: Path, folder: Path, suffixes: tuple[str, ...]) -> int:
    """Unpack the files with ``suffixes`` into ``folder``, without their folders; returns the number of files.

    ``folder`` appears complete or not at all. Reading a file checks its CRC-32.

    Raises:
        ArchiveError: not a zip, a damaged or encrypted file, a path outside the folder, no file, or two of one name.
        DownloadError: the disk is too small.
    """
    try:
        with zipfile.ZipFile(archive) as opened, staged_folder(folder) as staging:
            members = _members(archive, opened, suffixes)
            _check_space(folder.parent, sum(member.file_size for member in members.values()))
            for name, member in tqdm(members.items(), desc=f"unpack {archive.name}", unit=" files", disable=None):
                with opened.open(member) as source, (staging / name).open("wb") as target:
                    shutil.copyfileobj(source, target, _BLOCK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(f"{archive}: not a zip archive, or damaged ({error}); run the command again") from error
    return len(members)


def _members(archive: Path, opened: zipfile.ZipFile, suffixes: tuple[str, ...]) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in opened.infolist():
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
            raise ArchiveError(f"{archive}: the path {member.filename!r} leads out of the folder")
        if member.is_dir() or path.name.startswith("._") or path.suffix.lower() not in suffixes:
            continue  # "._": metadata that macOS adds to an archive
        if path.name in members:
            raise ArchiveError(f"{archive}: contains two files named {path.name}")
        members[path.name] = member
    if not members:
        raise ArchiveError(f"{archive}: contains no {' or '.join(suffixes)} file")
    return members


def _check_existing(out: Path, folder: str, archive: str, expected: str | None) -> None:
    print(f"{out / folder}: exists, not downloaded again")
    recorded = _read_manifest(out).get(archive, {}).get("sha256")
    if expected is None or recorded == expected.lower():
        return
    if recorded is not None:
        raise ArchiveError(
            f"{out / folder} was unpacked from a {archive} with SHA-256 {recorded}, expected {expected.lower()}: "
            "delete the folder to download it again"
        )
    print(
        f"{out / folder}: {MANIFEST} has no SHA-256 of {archive}, so it was not verified; delete the folder to "
        "download and verify it",
        file=sys.stderr,
    )


def _read_manifest(out: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest: dict[str, dict[str, Any]] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none yet, or damaged: it records no digest
        return {}
    return manifest


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are needed: free some, or name a "
            "folder on another disk"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.download",
        description="Download VizWiz (CC BY 4.0) from its official site, verify it and unpack it. After an "
        "interruption, the same command resumes.",
        epilog="Next: python -m training.fit --data VizWiz --clip ViT-L/14@336px",
    )
    parser.add_argument("--out", type=Path, default=Path("VizWiz"), help="VizWiz folder to make (default: VizWiz)")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS, help="splits whose photos to download (default: all)"
    )
    parser.add_argument("--base-url", default=BASE_URL, help=f"a mirror of {BASE_URL}")
    parser.add_argument("--quality", action="store_true", help="also people's votes on photo quality, 5 MB (CC BY 4.0)")
    parser.add_argument("--quality-url", default=QUALITY_URL, help="a mirror of its train.json and val.json")
    parser.add_argument(
        "--sha256",
        nargs="+",
        action="extend",
        type=_named_digest,
        default=[],
        metavar="FILE=HEX",
        help="expected digests of archives; verified for folders that exist too",
    )
    parser.add_argument("--retries", type=int, default=8, help="attempts in a row without a new byte (default: 8)")
    return parser.parse_args(argv)


def _named_digest(text: str) -> tuple[str, str]:
    names = {Path(path).name for path in ARCHIVES.values()}
    name, _, digest = text.partition("=")
    if name not in names or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise argparse.ArgumentTypeError(f"expected FILE=64 hexadecimal digits, FILE one of {', '.join(sorted(names))}")
    return name, digest


def main(argv: list[str] | None = None) -> int:
    """Run the command; an expected error prints one line and exits with 2."""
    arguments = parse_arguments(argv)
    try:
        with explain_full_disk(arguments.out, "--out"):
            download(
                arguments.out,
                tuple(arguments.splits),
                base_url=arguments.base_url,
                sha256=dict(arguments.sha256),
                retries=arguments.retries,
            )
            if arguments.quality:
                download_quality(arguments.out, url=arguments.quality_url, retries=arguments.retries)
    except (DownloadError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(streams.run(main))
