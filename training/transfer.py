"""One file over HTTP, resumed where it broke off and checked against the size that the server states."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from tqdm import tqdm

from training.storage import write_json

_BLOCK = 1 << 20  # bytes
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # statuses after which it is worth to ask again
_SPACE_FACTOR = 2  # an archive of photos, and the photos: JPEGs do not shrink in a zip


class DownloadError(Exception):
    """A file that cannot be downloaded."""


@dataclass(frozen=True)
class Transfer:
    """How patiently to download."""

    retries: int = 8  # attempts in a row that bring no byte
    first_wait_s: float = 1.0  # before the second attempt; doubles with each, up to longest_wait_s
    longest_wait_s: float = 60.0
    timeout_s: float = 60.0  # of silence


class _TryAgainError(Exception):
    """An attempt that failed in a way that another one may not."""


@dataclass(frozen=True)
class _Origin:
    """What the bytes on disk are part of; a server that has something else now must not be resumed from."""

    url: str
    etag: str | None
    last_modified: str | None
    size: int | None

    @property
    def validator(self) -> str | None:
        """The value of If-Range, which takes no weak ETag: RFC 9110, section 13.1.5."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


def fetch(url: str, path: Path, patience: Transfer) -> None:
    """Download ``url`` to ``path``, which appears when it is complete; a part of it is kept and resumed.

    Raises:
        DownloadError: no server, a refusal, attempts that bring nothing, or a disk that is too small.
    """
    if path.exists():
        return
    part, ledger = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    failures, wait_s = 0, patience.first_wait_s
    most = _size(part)  # a server that always makes us start over brings nothing either
    with _pool(url, patience) as pool:
        while True:
            try:
                _attempt(pool, url, part, ledger)
                break
            except (_TryAgainError, urllib3.exceptions.HTTPError) as error:
                if _size(part) > most:
                    failures, wait_s, most = 0, patience.first_wait_s, _size(part)
                failures += 1
                if failures >= patience.retries:
                    raise DownloadError(
                        f"{url}: gave up after {failures} attempts in a row that brought nothing ({_reason(error)}); "
                        f"{_size(part)} bytes are kept, and the same command goes on from there"
                    ) from error
                tqdm.write(f"{path.name}: {_reason(error)}; trying again in {wait_s:g} s")
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, patience.longest_wait_s)
    part.replace(path)
    ledger.unlink()


def check_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse to begin what the disk has no room for: ``needed`` bytes in ``folder``."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{purpose} takes {needed / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB free. Make room, or give "
            "--out on another disk"
        )


def _attempt(pool: urllib3.PoolManager, url: str, part: Path, ledger: Path) -> None:
    """Bring the part as far as one response does; returns when it is complete."""
    origin = _read_origin(ledger)
    if origin is None or origin.url != url or origin.validator is None:
        part.unlink(missing_ok=True)
        origin = None
    have = _size(part)
    if origin and have and have == origin.size:
        return
    headers = {"Accept-Encoding": "identity"}  # a compressed transfer would have another size
    if origin and have:
        headers |= {"Range": f"bytes={have}-", "If-Range": origin.validator or ""}
    response = pool.request("GET", url, headers=headers, preload_content=False, redirect=True)
    try:
        _check_status(response, url, part)
        start = _start(response, have)
        sent = _origin(response, url)
        if start == 0:
            part.unlink(missing_ok=True)  # before the ledger says what the next bytes are part of
            write_json(ledger, vars(sent))
        elif origin and (sent.size, sent.etag) != (origin.size, origin.etag):
            part.unlink()
            raise _TryAgainError("the server has another file now, and sends the rest of it; starting over")
        if sent.size is not None:
            check_space(part.parent, _SPACE_FACTOR * sent.size - start, f"downloading and unpacking {part.stem}")
        _receive(response, part, start, sent.size)
    finally:
        response.close()


def _check_status(response: urllib3.BaseHTTPResponse, url: str, part: Path) -> None:
    final = response.url or url
    if url.startswith("https:") and final.startswith("http:"):
        raise DownloadError(f"{url}: the server redirects to {final}, which is not encrypted; refused")
    if response.status == 416:  # it would have sent all of a file that changed: If-Range asks for that
        have = _size(part)
        part.unlink(missing_ok=True)
        raise DownloadError(f"{url}: the server stated a larger file, but has nothing after byte {have}; try again")
    if response.status in _TRANSIENT:
        raise _TryAgainError(f"the server answers {response.status} {response.reason}")
    if response.status not in (200, 206):
        raise DownloadError(f"{url}: the server answers {response.status} {response.reason}")


def _start(response: urllib3.BaseHTTPResponse, have: int) -> int:
    """Where the bytes of the response begin: 0 when the server sends everything, whatever was asked for."""
    if response.status == 200:
        return 0
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not first.isdigit() or int(first) != have:
        raise _TryAgainError(f"asked for bytes from {have}, the server sends {response.headers.get('Content-Range')!r}")
    return have


def _total(response: urllib3.BaseHTTPResponse) -> int | None:
    """Size of the whole file, where the server states one."""
    if response.status == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _origin(response: urllib3.BaseHTTPResponse, url: str) -> _Origin:
    return _Origin(url, response.headers.get("ETag"), response.headers.get("Last-Modified"), _total(response))


def _receive(response: urllib3.BaseHTTPResponse, part: Path, start: int, size: int | None) -> None:
    label = part.name.removesuffix(".part")
    with (
        part.open("ab" if start else "wb") as file,
        tqdm(total=size, initial=start, desc=label, unit="B", unit_scale=True, disable=None) as progress,
    ):
        while block := response.read1(_BLOCK):  # what has arrived: read() would lose it when the line goes dead
            file.write(block)
            progress.update(len(block))
    if size is not None and (have := _size(part)) != size:
        if have > size:
            part.unlink()
        raise _TryAgainError(f"{have} bytes arrived of {size}")


def _read_origin(ledger: Path) -> _Origin | None:
    try:
        return _Origin(**json.loads(ledger.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or (error.args[0] if error.args else error))


def _pool(url: str, patience: Transfer) -> urllib3.PoolManager:
    """Connections, through the proxy that the environment names where it names one."""
    parts = urlsplit(url)
    settings: dict[str, Any] = {
        "retries": urllib3.Retry(total=10, connect=0, read=0, status=0, other=0, redirect=10),
        "timeout": urllib3.Timeout(patience.timeout_s),
    }
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, **settings)
    return urllib3.PoolManager(**settings)
