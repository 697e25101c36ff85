"""Downloads from a real server on loopback that breaks connections off."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import annotation
from training.dataset import read_split
from training.download import ArchiveError, DownloadError, download, fetch, main, unpack
from training.quality import add_votes

FAST: Any = {"retries": 3, "wait_s": 0.01}
CONTENT = bytes(range(256)) * 4000  # 1 MB


class Site:
    """What the server has and how it misbehaves; ``requests`` are (path, value of Range)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks_after: list[int] = []  # of each request in turn, the bytes it is sent before the line goes dead
        self.stated_extra = 0  # bytes that Content-Length promises too much
        self.statuses: list[int] = []  # of each request in turn, before the file is sent at all
        self.ignores_range = False
        self.block_pause_s = 0.0
        self.requests: list[tuple[str, str | None]] = []
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site: Site = self.server.site  # type: ignore[attr-defined]
        asked = self.headers.get("Range")
        site.requests.append((self.path, asked))
        if site.statuses:
            return self._head(site.statuses.pop(0), {"Content-Length": "0"})
        if (content := site.files.get(self.path)) is None:
            return self._head(404, {"Content-Length": "0"})
        start = 0
        if asked and not site.ignores_range:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(content):
            return self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
        total = len(content) + site.stated_extra
        headers = {"Content-Length": str(total - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        self._head(206 if start else 200, headers)
        end = start + site.breaks_after.pop(0) if site.breaks_after else len(content)
        for place in range(start, min(end, len(content)), 50_000):
            self.wfile.write(content[place : min(place + 50_000, end)])
            time.sleep(site.block_pause_s)
        self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # a client that was killed


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on loopback that has one file."""
    site = Site()
    site.files["/file.zip"] = CONTENT
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.site = site  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()
        thread.join()


def holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content, without the minutes that pytest takes to show how a megabyte differs."""
    return path.read_bytes() == content


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive of ``files``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def photo() -> bytes:
    """A small photo as a file."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 50).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def vizwiz_site(site: Site) -> Site:
    """A server with a small VizWiz, archived as the official one is."""
    annotations = {}
    for split in ("train", "val", "test"):
        records = [annotation(n, image=f"VizWiz_{split}_{n:08}.jpg") for n in range(3)]
        if split == "test":
            records = [{"image": record["image"], "question": record["question"]} for record in records]
        annotations[f"Annotations/{split}.json"] = json.dumps(records).encode()
        photos = {f"{split}/{record['image']}": photo() for record in records}
        site.files[f"/images/{split}.zip"] = zipped(photos | {f"__MACOSX/{split}/._{n}.jpg": b"?" for n in range(2)})
    site.files["/vqa_data/Annotations.zip"] = zipped(annotations)
    return site


def test_a_broken_transfer_resumes(site: Site, tmp_path: Path) -> None:
    site.breaks_after = [300_000, 1, 400_000]
    fetch(f"{site.url}/file.zip", tmp_path / "file.zip", **FAST)
    assert holds(tmp_path / "file.zip", CONTENT)
    assert [asked for _, asked in site.requests] == [None, "bytes=300000-", "bytes=300001-", "bytes=700001-"]
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


def test_letters_beyond_ascii_in_an_address(site: Site, tmp_path: Path) -> None:
    site.files["/donn%C3%A9es/a%20b"] = CONTENT
    for number, path in enumerate(("données/a b", "donn%C3%A9es/a%20b")):
        fetch(f"{site.url}/{path}", tmp_path / str(number), **FAST)
        assert (tmp_path / str(number)).read_bytes() == CONTENT


def test_two_processes_do_not_download_into_one_folder(vizwiz_site: Site, tmp_path: Path) -> None:
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(DownloadError, match=f"another process downloads into {tmp_path}: when it has ended"):
        download(tmp_path, ("val",), base_url=vizwiz_site.url, **FAST)
    os.close(lock)
    download(tmp_path, ("val",), base_url=vizwiz_site.url, **FAST)


def test_a_file_system_without_locks(vizwiz_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    download(tmp_path, ("val",), base_url=vizwiz_site.url, **FAST)
    assert (tmp_path / "val").is_dir()


def test_a_server_without_ranges_sends_the_whole_file_again(site: Site, tmp_path: Path) -> None:
    site.breaks_after, site.ignores_range = [300_000], True
    fetch(f"{site.url}/file.zip", tmp_path / "file.zip", **FAST)
    assert holds(tmp_path / "file.zip", CONTENT)


def test_a_complete_partial_file_is_accepted(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    fetch(f"{site.url}/file.zip", tmp_path / "file.zip", **FAST)
    assert holds(tmp_path / "file.zip", CONTENT)


def test_attempts_without_a_new_byte_end_and_preserve_the_part(site: Site, tmp_path: Path) -> None:
    site.breaks_after = [300_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"gave up after 3 attempts .* 300000 bytes are kept"):
        fetch(f"{site.url}/file.zip", tmp_path / "file.zip", **FAST)
    fetch(f"{site.url}/file.zip", tmp_path / "file.zip", **FAST)
    assert holds(tmp_path / "file.zip", CONTENT)
    assert site.requests[-1] == ("/file.zip", "bytes=300000-")


def test_server_errors_are_retried_and_a_missing_file_is_not(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 500]
    fetch(f"{site.url}/file.zip", tmp_path / "file.zip", **FAST)
    assert len(site.requests) == 3
    with pytest.raises(DownloadError, match="HTTP status 404"):
        fetch(f"{site.url}/none.zip", tmp_path / "none.zip", **FAST)
    assert len(site.requests) == 4


def test_a_file_larger_than_the_disk_is_refused(site: Site, tmp_path: Path) -> None:
    site.stated_extra = 10**16
    with pytest.raises(DownloadError, match=r"has .* GB free, 10000000\.\d\d GB are needed"):
        fetch(f"{site.url}/file.zip", tmp_path / "file.zip", **FAST)
    assert not (tmp_path / "file.zip.part").exists()


def test_a_vizwiz_folder_is_made_and_left_alone_the_second_time(vizwiz_site: Site, tmp_path: Path) -> None:
    vizwiz_site.breaks_after = [200, 300, 400]
    out = tmp_path / "VizWiz"
    download(out, base_url=vizwiz_site.url, **FAST)
    assert sorted(path.name for path in out.iterdir()) == ["Annotations", "archives.json", "test", "train", "val"]
    assert [len(read_split(out, split, labelled=split != "test").records) for split in ("train", "val", "test")] == [
        3
    ] * 3
    manifest = json.loads((out / "archives.json").read_text())
    train = vizwiz_site.files["/images/train.zip"]
    assert manifest["train.zip"]["sha256"] == hashlib.sha256(train).hexdigest()
    assert manifest["train.zip"]["bytes"] == len(train)
    asked = len(vizwiz_site.requests)
    download(out, base_url=vizwiz_site.url, **FAST)
    assert len(vizwiz_site.requests) == asked


def test_a_damaged_archive_is_refused_and_fetched_again(vizwiz_site: Site, tmp_path: Path) -> None:
    good = vizwiz_site.files["/images/val.zip"]
    place = good.index(b"\xff\xd8") + 300  # inside the first photo
    vizwiz_site.files["/images/val.zip"] = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
    with pytest.raises(ArchiveError, match=r"val\.zip: not a zip archive, or damaged \(Bad CRC-32"):
        download(tmp_path, ("val",), base_url=vizwiz_site.url, **FAST)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Annotations", "archives.json"]
    vizwiz_site.files["/images/val.zip"] = good
    download(tmp_path, ("val",), base_url=vizwiz_site.url, **FAST)


def test_a_resumed_file_that_changed_on_the_server_is_refused_and_fetched_again(
    vizwiz_site: Site, tmp_path: Path
) -> None:
    new = vizwiz_site.files["/images/val.zip"]
    (tmp_path / "val.zip.part").write_bytes(bytes(len(new) // 2))  # of an older file
    with pytest.raises(ArchiveError, match="damaged"):
        download(tmp_path, ("val",), base_url=vizwiz_site.url, **FAST)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Annotations", "archives.json"]
    download(tmp_path, ("val",), base_url=vizwiz_site.url, **FAST)
    assert len(read_split(tmp_path, "val").records) == 3


def test_an_archive_with_another_digest_than_asked_for_is_refused(vizwiz_site: Site, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"val\.zip: SHA-256 is [0-9a-f]{64}, expected 0{64}"):
        download(tmp_path, ("val",), base_url=vizwiz_site.url, sha256={"val.zip": "0" * 64}, **FAST)
    right = hashlib.sha256(vizwiz_site.files["/images/val.zip"]).hexdigest().upper()
    download(tmp_path, ("val",), base_url=vizwiz_site.url, sha256={"val.zip": right}, **FAST)


def test_a_folder_from_another_archive_than_asked_for_is_refused(vizwiz_site: Site, tmp_path: Path) -> None:
    download(tmp_path, ("val",), base_url=vizwiz_site.url, **FAST)
    asked = len(vizwiz_site.requests)
    wrong = {"val.zip": "0" * 64}
    with pytest.raises(ArchiveError, match=r"val was unpacked from a val\.zip with SHA-256 [0-9a-f]{64}, exp.* 0{64}"):
        download(tmp_path, ("train", "val"), base_url=vizwiz_site.url, sha256=wrong, **FAST)
    assert len(vizwiz_site.requests) == asked
    right = hashlib.sha256(vizwiz_site.files["/images/val.zip"]).hexdigest().upper()
    download(tmp_path, ("val",), base_url=vizwiz_site.url, sha256={"val.zip": right}, **FAST)


@pytest.mark.parametrize("lose_manifest", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["gone", "damaged"])
def test_a_folder_without_a_recorded_digest_is_reported(
    vizwiz_site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], lose_manifest: Callable[[Path], object]
) -> None:
    download(tmp_path, ("val",), base_url=vizwiz_site.url, **FAST)
    download(tmp_path, ("val",), base_url=vizwiz_site.url, **FAST)
    assert capsys.readouterr().err == ""
    lose_manifest(tmp_path / "archives.json")
    download(tmp_path, ("val",), base_url=vizwiz_site.url, sha256={"val.zip": "0" * 64}, **FAST)
    assert "val: archives.json has no SHA-256 of val.zip, so it was not verified" in capsys.readouterr().err


def test_a_digest_of_an_archive_that_is_not_asked_for_is_refused(
    vizwiz_site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "VizWiz"
    digests = ["--sha256", f"train.zip={'0' * 64}", "--sha256", f"val.zip={'1' * 64}"]
    assert main(["--out", str(out), "--base-url", vizwiz_site.url, "--splits", "val", *digests]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --sha256 names train.zip, but this command downloads Annotations.zip, val.zip: "
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>maintenance</html>", "not a zip archive, or damaged"),
        (zipped({"val/../../evil.jpg": b"x"}), "'val/../../evil.jpg' leads out of the folder"),
        (zipped({"/etc/evil.jpg": b"x"}), "leads out of the folder"),
        (zipped({"val\\..\\evil.jpg": b"x"}), "leads out of the folder"),
        (zipped({"a/photo.jpg": b"x", "b/photo.jpg": b"y"}), r"two files named photo\.jpg"),
        (zipped({"val/readme.txt": b"x"}), r"contains no \.jpg file"),
    ],
)
def test_an_archive_that_holds_what_it_should_not(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "val.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match=message):
        unpack(tmp_path / "val.zip", tmp_path / "val", (".jpg",))
    assert [path.name for path in tmp_path.iterdir()] == ["val.zip"]


def test_votes_on_photo_quality_are_downloaded_where_asked(
    vizwiz_site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path), "--base-url", vizwiz_site.url, "--splits", "train", "val"]
    assert main(arguments) == 0
    assert not (tmp_path / "Quality").exists()
    arguments += ["--quality", "--quality-url", f"{vizwiz_site.url}/quality/"]
    flaws = dict.fromkeys(("BLR", "FRM", "DRK", "BRT", "OBS", "ROT", "OTH", "NON"), 1)
    for split in ("train", "val"):
        votes = [{"image": f"VizWiz_{split}_{n:08}.jpg", "flaws": flaws, "unrecognizable": 0} for n in range(4)]
        vizwiz_site.files[f"/quality/{split}.json"] = json.dumps(votes).encode()
    whole = vizwiz_site.files["/quality/val.json"]
    vizwiz_site.files["/quality/val.json"] = b"<html>"
    assert main(arguments) == 2
    assert "val.json is not JSON" in capsys.readouterr().err
    assert not (tmp_path / "Quality").exists()
    vizwiz_site.files["/quality/val.json"] = whole
    assert main(arguments) == 0
    assert sum(record.votes is not None for record in add_votes(read_split(tmp_path, "val")).records) == 3
    assert main(arguments) == 0
    assert f"{tmp_path / 'Quality'}: exists, not downloaded again" in capsys.readouterr().out


def test_the_command_reports_in_one_line(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--base-url", site.url]) == 2
    url = f"{site.url}/vqa_data/Annotations.zip"
    assert capsys.readouterr().err == f"error: {url}: the server answers with HTTP status 404; check --base-url\n"
    assert main(["--out", str(tmp_path), "--base-url", "mirror.example.org"]) == 2
    assert "mirror.example.org/vqa_data/Annotations.zip, expected https://... or http://...;" in capsys.readouterr().err
    assert main(["--out", str(tmp_path), "--base-url", "http://mirror.example.org:abc"]) == 2
    assert "nonnumeric port: 'abc'; check --base-url" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--sha256", "train.zip=abc"])
    assert "expected FILE=64 hexadecimal digits, FILE one of Annotations.zip" in capsys.readouterr().err
