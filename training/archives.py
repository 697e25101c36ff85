"""Zip archives, unpacked whole or not at all."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from training.storage import staged_folder
from training.transfer import check_space


class ArchiveError(Exception):
    """An archive that is damaged, or holds what it should not."""


def unpack(archive: Path, folder: Path, suffixes: tuple[str, ...]) -> int:
    """Unpack the files of ``archive`` into ``folder``, which appears whole or not at all; returns how many there are.

    The archive may hold them at its top or in folders, which are left out of their names; other kinds of files are
    skipped. Reading a file checks its CRC-32.

    Raises:
        ArchiveError: not a zip, a damaged or encrypted file, a name that would escape, no files, or two of one name.
        DownloadError: too little space on the disk.
    """
    try:
        with zipfile.ZipFile(archive) as opened, staged_folder(folder) as staging:
            members = _members(archive, opened, suffixes)
            check_space(folder.parent, sum(member.file_size for member in members.values()), f"unpacking {archive}")
            for name, member in tqdm(members.items(), desc=f"unpack {archive.name}", unit=" files", disable=None):
                with opened.open(member) as source, (staging / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(f"{archive}: damaged, or not a zip archive ({error})") from error
    return len(members)


def _members(archive: Path, opened: zipfile.ZipFile, suffixes: tuple[str, ...]) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in opened.infolist():
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
            raise ArchiveError(f"{archive}: {member.filename!r} would be written outside of the folder")
        if member.is_dir() or path.name.startswith("._") or path.suffix.lower() not in suffixes:
            continue  # "._": what a Mac adds to an archive
        if path.name in members:
            raise ArchiveError(f"{archive}: holds two files of the name {path.name}")
        members[path.name] = member
    if not members:
        raise ArchiveError(f"{archive}: holds no {' or '.join(suffixes)} file")
    return members
