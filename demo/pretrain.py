"""Pre-train the demo CLIP: OpenAI's own model class at small width, on generated pictures and captions.

    python -m demo.pretrain

Drawn pictures stay in .cache/pretrain. Writes demo/clip_demo.pt, 5.7 MB, which ``clip.load`` reads like any other
checkpoint. docs/results.md says how the committed one was trained, and has the scores of the heads fitted on it.
"""

from __future__ import annotations

import argparse
import io
import math
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from demo import DEMO_CLIP
from demo.captions import facts_of
from demo.pairs import IMAGE_SIZE, Texts, encode_facts, matches, render, scene_of, tokens_in_use
from training.artifacts import digest_of, staged_file
from training.backbone import clip, normalise_pixels
from vizwiz_client.contract import streams

VOCABULARY = 49408  # CLIP's tokens
PAIRS_VERSION = 2  # raise it when the same seed gives other pairs: older drawings are then ignored

_SHIFT = 4  # pixels that augmentation moves a picture at most; a badly framed thing is off by 20 and more
_GROUP = 32  # texts of similar length that are encoded together
_WARM_UP = 0.03  # share of the training
_MAX_SCALE = 100.0  # of the logits: CLIP, section 2.5


@dataclass(frozen=True)
class Settings:
    """Options of the pre-training."""

    pictures: int = 24_000
    epochs: int = 10
    batch_size: int = 256
    questions: int = 128  # of a batch's scenes, for the paraphrases
    learning_rate: float = 2e-3
    quality_weight: float = 0.3  # of the captions about how a picture was taken, against those about what it shows
    seed: int = 0


def build_model(vocabulary: int) -> Any:
    """OpenAI's CLIP at small width: a ResNet for pictures, 3 transformer layers for texts, 512 features of each.

    At this size a ResNet is twice as fast on a CPU as a vision transformer, and learns from fewer pictures.
    """
    model = clip.model.CLIP(
        embed_dim=512,
        image_resolution=IMAGE_SIZE,
        vision_layers=(1, 1, 1, 1),
        vision_width=20,
        vision_patch_size=None,
        context_length=77,
        vocab_size=vocabulary,
        transformer_width=128,
        transformer_heads=2,
        transformer_layers=3,
    )
    model.visual.to(memory_format=torch.channels_last)  # a quarter faster
    return model


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, match: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy; all captions that are true of a picture share its target.

    Args:
        images, texts: centred features [N, D].
        scale: of the cosines.
        match: bool [N, N], picture by caption. A short caption is true of many pictures, which are no negatives
            then: "Unified Contrastive Learning" (arXiv 2204.03610).
    """
    logits = scale * functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
    return (shared_cross_entropy(logits, match) + shared_cross_entropy(logits.T, match.T)) / 2


def paraphrase_loss(questions: Tensor, scale: Tensor, kinds: Tensor) -> Tensor:
    """Pull questions that ask for the same thing together: "Supervised Contrastive Learning" (arXiv 2004.11362).

    With pairs of picture and caption alone, the features of different questions hardly differ.

    Args:
        questions: centred features [N, D].
        scale: of the cosines.
        kinds: what each asks for, int64 [N].
    """
    own = torch.eye(len(kinds), dtype=torch.bool)
    match = (kinds[:, None] == kinds[None]) & ~own
    has_paraphrase = match.any(dim=1)
    unit = functional.normalize(questions, dim=1)
    logits = (scale * unit @ unit.T).masked_fill(own, -1e4)
    return shared_cross_entropy(logits[has_paraphrase], match[has_paraphrase])


def shared_cross_entropy(logits: Tensor, match: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` [N, M] with a target spread evenly over the true entries of ``match``."""
    target = match.float()
    return functional.cross_entropy(logits, target / target.sum(dim=1, keepdim=True))


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift uint8 [N, S, S, 3] by a few pixels and vary the exposure; returns the model's input [N, 3, S, S]."""
    images = functional.pad(normalise_pixels(pixels), (_SHIFT,) * 4, mode="replicate")
    corners = torch.randint(2 * _SHIFT + 1, (len(images), 2), generator=generator).tolist()
    side = pixels.shape[1]
    images = torch.stack([each[:, y : y + side, x : x + side] for each, (y, x) in zip(images, corners, strict=True)])
    gain = 1 + 0.08 * torch.randn(len(images), 1, 1, 1, generator=generator)
    tint = 0.08 * torch.randn(len(images), 3, 1, 1, generator=generator)
    return (images * gain + tint).contiguous(memory_format=torch.channels_last)


class Trainer:
    """The model and its optimiser.

    Args:
        settings: options.
        shards: .npy files of drawn pictures, uint8 [N, S, S, 3].
    """

    def __init__(self, settings: Settings, shards: list[Path]) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.epoch = settings, 0
        self.pixels: npt.NDArray[np.uint8] = np.concatenate([np.load(path) for path in shards])
        scenes = [scene_of(settings.seed, index)[0] for index in range(settings.pictures)]
        self.texts = Texts(scenes)
        self.shown = encode_facts([facts_of(scene) for scene in scenes])
        self.model = build_model(len(tokens_in_use()))
        matrices = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.model.parameters() if parameter.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))

    def run(self) -> None:
        """Train all epochs."""
        for _ in range(self.settings.epochs):
            self._train_epoch()
            self.epoch += 1

    def _train_epoch(self) -> None:
        generator = torch.Generator().manual_seed(1000 * self.settings.seed + self.epoch)
        batches = torch.randperm(len(self.pixels), generator=generator).split(self.settings.batch_size)
        self.model.train()
        label = f"epoch {self.epoch + 1}/{self.settings.epochs}"
        with tqdm(batches, desc=label, unit="batch", disable=None) as progress:
            for step, rows in enumerate(progress):
                self._set_rate((self.epoch + step / len(batches)) / self.settings.epochs)
                loss = self._loss(rows, generator)
                self.optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimiser.step()
                progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)

    def _set_rate(self, done: float) -> None:
        rate = self.settings.learning_rate * min(1.0, done / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * done))
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def _loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        draw = f"{self.settings.seed}/{self.epoch}"
        tokens, stated = self.texts.draw_captions(rows, draw)
        qualities, quality_stated = self.texts.draw_quality_captions(rows, draw)
        questions, kinds = self.texts.draw_questions(rows[: self.settings.questions], draw)
        images = augment(torch.from_numpy(self.pixels[rows.numpy()]), generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            image_features = self.model.encode_image(images).float()
            text_features = self._encode_texts(tokens)
            quality_features = self._encode_texts(qualities)
            question_features = self._encode_texts(questions)
        # the mean of the features carries no information; finish() removes it from the model
        image_features = image_features - image_features.mean(dim=0)
        middle = (text_features.mean(dim=0) + question_features.mean(dim=0)) / 2
        scale = self.model.logit_scale.exp().clamp(max=_MAX_SCALE)
        shown = self.shown[rows]
        loss = contrastive_loss(image_features, text_features - middle, scale, matches(shown, stated))
        quality_match = matches(shown, quality_stated)
        quality_loss = contrastive_loss(image_features, quality_features - middle, scale, quality_match)
        paraphrases = paraphrase_loss(question_features - middle, scale, kinds)
        return loss + self.settings.quality_weight * quality_loss + paraphrases

    def _encode_texts(self, tokens: Tensor) -> Tensor:
        """Features [N, D] of ``tokens`` [N, T], encoded in groups of about the same length: three times faster."""
        lengths = (tokens != 0).sum(dim=1)
        groups = lengths.argsort().split(_GROUP)
        features = [self.model.encode_text(tokens[group, : int(lengths[group].max())]) for group in groups]
        return torch.cat(features)[torch.cat(groups).argsort()].float()

    @torch.inference_mode()
    def finish(self) -> None:
        """Centre the features of pictures and of texts on zero and give both unit variance.

        A head normalises their concatenation, so both need the same scale. Shift and scale of the pictures go into
        the last layer. The last layer of the texts has no bias, so their shift goes into the LayerNorm before it.
        """
        self.model.eval()
        rows = torch.arange(min(1000, len(self.pixels)))
        images = self.model.encode_image(normalise_pixels(torch.from_numpy(self.pixels[rows.numpy()])))
        captions = self.model.encode_text(self.texts.draw_captions(rows, "finish")[0])
        questions = self.model.encode_text(self.texts.draw_questions(rows, "finish")[0])
        last = self.model.visual.attnpool.c_proj
        last.bias -= images.mean(dim=0)
        middle = (captions.mean(dim=0) + questions.mean(dim=0)) / 2
        self.model.ln_final.bias -= middle @ torch.linalg.pinv(self.model.text_projection)
        self.model.text_projection /= questions.std(dim=0).square().mean().sqrt()
        deviation = images.std(dim=0).square().mean().sqrt()
        last.weight /= deviation
        last.bias /= deviation


def save_checkpoint(model: Any, path: Path) -> None:
    """Write a checkpoint for ``clip.load``: fp16, deflated, with zeros for the tokens that no text has."""
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    rows = state["token_embedding.weight"]
    state["token_embedding.weight"] = torch.zeros(VOCABULARY, rows.shape[1], dtype=rows.dtype)
    state["token_embedding.weight"][tokens_in_use()] = rows
    plain = io.BytesIO()
    torch.save({key: value.contiguous() for key, value in state.items()}, plain)
    with (
        staged_file(path) as staging,
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(staging, "w") as deflated,
    ):
        for name in source.namelist():
            deflated.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED, 9)


def load_checkpoint(model: Any, path: Path) -> None:
    """Load what :func:`save_checkpoint` wrote; tokens that its texts did not have keep their initial embedding."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    rows = state["token_embedding.weight"][tokens_in_use()]
    known = rows.any(dim=1)
    state["token_embedding.weight"] = torch.where(known[:, None], rows.float(), model.token_embedding.weight.detach())
    model.load_state_dict({name: state[name].float() for name in model.state_dict()})


def pretrain(settings: Settings, out: Path, work: Path, workers: int, start: Path | None = None) -> Path:
    """Draw the pictures into ``work``, train, and write the checkpoint ``out``; ``start`` holds the initial weights."""
    folder = work / digest_of(f"{PAIRS_VERSION} {settings.seed} {settings.pictures}")[:12]
    shards = render(settings.seed, settings.pictures, folder, workers)
    trainer = Trainer(settings, shards)
    if start:
        load_checkpoint(trainer.model, start)
    trainer.run()
    trainer.finish()
    save_checkpoint(trainer.model, out)
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m demo.pretrain", description="Pre-train the demo CLIP.")
    parser.add_argument("--out", type=Path, default=DEMO_CLIP, help=f"checkpoint to write (default: {DEMO_CLIP.name})")
    parser.add_argument("--work", type=Path, default=Path(".cache/pretrain"), help="(default: .cache/pretrain)")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw (default: 2)")
    parser.add_argument("--start", type=Path, help="checkpoint of this command to start from (default: random weights)")
    options = ("pictures", "epochs", "seed", "learning_rate", "quality_weight")
    for name in options:
        default = getattr(Settings, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"(default: {default})")
    arguments = parser.parse_args(argv)
    if arguments.out.is_dir():
        parser.error(f"got --out {arguments.out}, a folder; expected a file")
    settings = Settings(**{name: getattr(arguments, name) for name in options})
    started = time.monotonic()
    out = pretrain(settings, arguments.out, arguments.work, arguments.workers, arguments.start)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB after {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    raise SystemExit(streams.run(main))
