"""No photo, question or answer reaches the disk or a log."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import time
from pathlib import Path

from tests.client.small_server import SmallServer
from tests.gateway.processes import Gateway, draw_photo, form, head, read_reply

QUESTION = "which pills are these 5d1e7c?"  # found nowhere by chance
MARKER = b"marker-of-this-photo-9f3a"


def regular_files(gateway: Gateway) -> set[str]:
    """Regular files that the process has open, deleted ones included."""
    found = set()
    for path in Path(f"/proc/{gateway.pid}/fd").iterdir():
        if stat.S_ISREG(path.stat().st_mode):
            found.add(str(path.readlink()))
    return found


def files_with(marker: bytes, since: float) -> list[Path]:
    """Files changed after ``since`` that contain ``marker``, in the folders for temporary files."""
    roots = {Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")}
    found = []
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                try:
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode) and status.st_mtime >= since and marker in path.read_bytes():
                        found.append(path)
                except OSError:  # removed meanwhile, or another user's
                    continue
    return found


def test_an_upload_of_10_mb_touches_no_disk(triton: SmallServer, tmp_path: Path) -> None:
    photo = draw_photo() + (MARKER + bytes(1_000)) * 10_000  # decoders ignore what follows the picture
    body, since = form(photo, QUESTION), time.time() - 1
    with Gateway(triton.grpc_url) as gateway:
        before = regular_files(gateway)
        with gateway.connect() as connection:
            connection.sendall(head(len(body)) + body[:-100])
            wait_until_read(gateway, connection)
            assert regular_files(gateway) == before
            assert files_with(MARKER, since) == []
            connection.sendall(body[-100:])
            assert read_reply(connection)[0] == 200
        refused = gateway.ask(MARKER * 1_000, QUESTION)
        assert refused.status_code == 415
        assert regular_files(gateway) == before
        log = gateway.stop()
    assert files_with(MARKER, since) == []
    assert log == ""


def test_the_search_finds_a_file(tmp_path: Path) -> None:
    """The test above can fail."""
    marker, since = os.urandom(8).hex().encode(), time.time() - 1
    path = Path(tempfile.gettempdir()) / f"marked-{marker.decode()}"
    path.write_bytes(b"x" + marker)
    try:
        assert files_with(marker, since) == [path]
    finally:
        path.unlink()


def wait_until_read(gateway: Gateway, connection: socket.socket) -> None:
    """Return when the gateway has taken all that was sent: the kernel holds none of it."""
    port, deadline = connection.getsockname()[1], time.monotonic() + 60
    while True:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = [
            row[4] for row in rows if int(row[1].split(":")[1], 16) == port or int(row[2].split(":")[1], 16) == port
        ]
        if ours and all(queues == "00000000:00000000" for queues in ours):
            return
        assert time.monotonic() < deadline, "the gateway does not read"
        time.sleep(0.02)
