"""LitServe with PyTorch, a peer of the load benchmark: JSON of a question and a photo (base64) in, JSON out.

    python -m benchmarks.serving.litserve_baseline --checkpoint clip.pt --run runs/... --port 8080

Batches up to eight questions, which is LitServe's way to more throughput. Runs in the environment of the peers.
"""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path
from typing import Any

import litserve
import torch
from PIL import Image

from training.backbone import clip
from training.run import read_run

BATCH_SIZE = 8
BATCH_TIMEOUT_S = 0.005


class Vqa(litserve.LitAPI):  # type: ignore[misc]
    """CLIP's own model and preprocess, and the head of a run."""

    def __init__(self, checkpoint: Path, run: Path) -> None:
        super().__init__(api_path="/ask", max_batch_size=BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
        self.files = checkpoint, run

    def setup(self, device: str) -> None:
        """Load both, in the process that computes."""
        checkpoint, run = self.files
        self.clip, self.preprocess = clip.load(str(checkpoint), device="cpu")
        self.run = read_run(run)
        self.heads = self.run.load_ensemble()

    # LitServe takes an annotation of `request`, or of the result of `encode_response`, as the schema of the body
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """Photo and question to tensors."""
        image = self.preprocess(Image.open(io.BytesIO(base64.b64decode(request["photo"]))))
        return image, clip.tokenize([request["question"]], truncate=True)[0]

    def batch(self, inputs: list[Any]) -> list[Any]:
        """The tensors are stacked in `predict`."""
        return inputs

    def predict(self, batch: list[tuple[torch.Tensor, torch.Tensor]]) -> list[dict[str, str | float]]:
        """Answers of a batch."""
        images, tokens = (torch.stack(each) for each in zip(*batch, strict=True))
        with torch.inference_mode():
            features = self.clip.encode_text(tokens).float(), self.clip.encode_image(images).float()
            outputs = self.heads([features])
        best = outputs.answer.argmax(dim=1)
        return [
            {
                "answer": self.run.answers[int(best[row])],
                "probability": float(outputs.answer[row, best[row]]),
                "answerable": float(outputs.answerable[row]),
            }
            for row in range(len(batch))
        ]

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        """As it is."""
        return output


def main() -> None:
    """Serve on loopback until terminated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    server = litserve.LitServer(Vqa(arguments.checkpoint, arguments.run), accelerator="cpu", timeout=600)
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
