"""FastAPI with PyTorch, the baseline of the load benchmark: multipart photo and question in, JSON out.

    python -m benchmarks.serving.fastapi_baseline --checkpoint clip.pt --run runs/... --port 8080 [--bf16]

One process. FastAPI runs the endpoint, a plain function, in its thread pool, and PyTorch computes each request on all
cores. CLIP's own preprocess ignores EXIF orientation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated

import torch
import uvicorn
from fastapi import FastAPI, Form, UploadFile
from PIL import Image

from training.backbone import clip
from training.run import read_run


def create_app(checkpoint: Path, run_folder: Path, bf16: bool) -> FastAPI:
    """CLIP's own model and preprocess, and the head of a run, as an application."""
    model, preprocess = clip.load(str(checkpoint), device="cpu")
    run = read_run(run_folder)
    heads = run.load_ensemble()
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/ask")
    def ask(photo: UploadFile, question: Annotated[str, Form()]) -> dict[str, str | float]:
        image = preprocess(Image.open(photo.file)).unsqueeze(0)
        tokens = clip.tokenize([question], truncate=True)
        with torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                image_features, text_features = model.encode_image(image), model.encode_text(tokens)
            outputs = heads([(text_features.float(), image_features.float())])
        best = int(outputs.answer[0].argmax())
        return {
            "answer": run.answers[best],
            "probability": float(outputs.answer[0, best]),
            "answer_type": run.answer_types[int(outputs.answer_type[0].argmax())],
            "answerable": float(outputs.answerable[0]),
        }

    return app


def main() -> None:
    """Serve on loopback until terminated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bf16", action="store_true", help="compute the encoders under bf16 autocast")
    arguments = parser.parse_args()
    app = create_app(arguments.checkpoint, arguments.run, arguments.bf16)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
