"""Ask the golden question in a closed loop until standard input closes; print each reply as a line of JSON.

A process of its own, whose PYTHONPATH selects the version of the client: arguments are the folder that holds it, the
server's gRPC address and a photo.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

THREADS = 2


def main(folder: str, url: str, photo: str) -> int:
    """Ask until standard input closes."""
    import vizwiz_client

    assert Path(vizwiz_client.__file__).is_relative_to(folder), f"{vizwiz_client.__file__} is another client"
    end, lock = threading.Event(), threading.Lock()

    def ask() -> None:
        while not end.is_set():
            line = json.dumps(reply(client, photo))
            with lock:
                print(line, flush=True)

    with vizwiz_client.VizwizClient(url, timeout_s=60) as client:
        threads = [threading.Thread(target=ask) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        end.set()
        for thread in threads:
            thread.join()
    return 0


def reply(client: Any, photo: str) -> dict[str, Any]:
    """One reply, or its error."""
    try:
        answer = client.ask(photo, "What is this?", top=10)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "head": f"gated_head_{answer.head_id}",
        "answers": {candidate.answer: candidate.confidence for candidate in answer.candidates},
        "answerable": answer.answerable,
        "quality": dict(getattr(answer, "quality", None) or {}),  # earlier clients have none
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
