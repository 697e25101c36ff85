"""The demo CLIP: the committed checkpoint, and the script that makes it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch.nn import functional

from demo import DEMO_CLIP, pairs
from demo.photo import take_photo
from demo.pretrain import (
    Settings,
    Trainer,
    build_model,
    contrastive_loss,
    load_checkpoint,
    main,
    paraphrase_loss,
    pretrain,
    save_checkpoint,
)
from demo.scene import draw_scene
from training.backbone import clip_tokenize, load_clip, normalise_pixels
from vizwiz_client.contract.image import to_pixels

TINY = Settings(pictures=20, epochs=2, batch_size=10)


def trainer(settings: Settings, folder: Path) -> Trainer:
    """A trainer on freshly drawn pictures, or on those in the folder."""
    return Trainer(settings, pairs.render(0, settings.pictures, folder, 1))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A trainer whose model no test changes, in evaluation mode."""
    made = trainer(TINY, tmp_path_factory.mktemp("pictures"))
    made.model.eval()
    return made


def test_the_committed_checkpoint_is_a_small_clip() -> None:
    assert DEMO_CLIP.stat().st_size < 8_000_000
    assert {entry.compress_type for entry in zipfile.ZipFile(DEMO_CLIP).infolist()} == {zipfile.ZIP_DEFLATED}
    clip = load_clip(DEMO_CLIP)
    assert clip.image_size == pairs.IMAGE_SIZE
    assert clip.model.context_length == 77
    assert clip.model.vocab_size == 49408


def test_the_committed_checkpoint_names_what_it_sees() -> None:
    clip = load_clip(DEMO_CLIP)
    names = ("mug", "umbrella", "chair", "scissors", "clock", "shirt")
    texts = clip.encode_texts(clip_tokenize([f"a photo of a {name}" for name in names]).int().numpy())
    hits = []
    for index in range(600):
        scene = draw_scene(Random(f"zero shot {index}"), 0)
        if scene.name in names and scene.blur < 0.5 and scene.framing < 0.5 and not scene.dark:
            photo = take_photo(scene, (480, 640), Random(index))
            image = clip.encode_images(to_pixels(photo, clip.image_size)[None])
            similarity = functional.cosine_similarity(torch.from_numpy(image), torch.from_numpy(texts))
            hits.append(names[int(similarity.argmax())] == scene.name)
    assert len(hits) > 20
    assert sum(hits) / len(hits) > 0.9


def test_texts_are_encoded_in_groups_as_they_are_alone(untrained: Trainer) -> None:
    tokens, _ = untrained.texts.draw_captions(torch.arange(20).repeat(4), "test")
    with torch.inference_mode():
        grouped, alone = untrained._encode_texts(tokens), untrained.model.encode_text(tokens)
    assert torch.allclose(grouped, alone, rtol=0, atol=1e-4)


def test_pictures_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_SHARD", 20)
    shards = pairs.render(0, 30, tmp_path, workers=2)
    assert [len(np.load(path)) for path in shards] == [20, 10]
    np.save(shards[0], np.zeros(1))
    assert pairs.render(0, 30, tmp_path, workers=2) == shards
    assert np.load(shards[0]).shape == (1,)


def test_pretraining_writes_a_checkpoint_of_the_trained_weights(tmp_path: Path) -> None:
    out = pretrain(TINY, tmp_path / "out.pt", tmp_path / "work", workers=1)
    loaded = load_clip(out)
    features = loaded.encode_texts(clip_tokenize(["what color is this? red", "a mug"]).int().numpy())
    assert features.shape == (2, 512)
    assert not torch.allclose(*torch.from_numpy(features))
    embedding = loaded.model.token_embedding.weight
    assert (embedding != 0).any(dim=1).sum() < 1000


def test_training_continues_from_a_checkpoint(tmp_path: Path) -> None:
    """A token that the checkpoint's texts did not have keeps its initial embedding."""
    torch.manual_seed(0)
    saved, other = (build_model(len(pairs.tokens_in_use())) for _ in range(2))
    with torch.no_grad():
        saved.token_embedding.weight[7] = 0
    save_checkpoint(saved, tmp_path / "clip.pt")
    initial = other.token_embedding.weight[7].clone()
    load_checkpoint(other, tmp_path / "clip.pt")
    torch.testing.assert_close(other.visual.conv1.weight, saved.visual.conv1.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.token_embedding.weight[8], saved.token_embedding.weight[8], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.token_embedding.weight[7], initial, rtol=0, atol=0)


def test_saving_loses_no_more_than_half_precision_does(untrained: Trainer, tmp_path: Path) -> None:
    save_checkpoint(untrained.model, tmp_path / "out.pt")
    loaded = load_clip(tmp_path / "out.pt")
    rows = torch.arange(8)
    numbers, _ = untrained.texts.draw_captions(rows, "test")
    with torch.inference_mode():
        expected = untrained.model.encode_text(numbers)
        images = untrained.model.encode_image(normalise_pixels(torch.from_numpy(untrained.pixels[:8])))
    texts = loaded.encode_texts(pairs.tokens_in_use()[numbers].int().numpy())
    for got, wanted in ((texts, expected), (loaded.encode_images(untrained.pixels[:8]), images)):
        assert torch.allclose(torch.from_numpy(got), wanted, rtol=0, atol=0.005 * float(wanted.abs().max()))


def test_finished_features_are_centred_and_of_one_scale(tmp_path: Path) -> None:
    trained = trainer(TINY, tmp_path)
    pixels, rows = normalise_pixels(torch.from_numpy(trained.pixels)), torch.arange(20)
    numbers, _ = trained.texts.draw_questions(rows, "finish")
    with torch.inference_mode():
        trained.model.eval()
        before = trained.model.encode_image(pixels)
        trained.finish()
        images, questions = trained.model.encode_image(pixels), trained.model.encode_text(numbers)
        captions = trained.model.encode_text(trained.texts.draw_captions(rows, "finish")[0])
    centred = before - before.mean(dim=0)
    assert torch.allclose(images.mean(dim=0), torch.zeros(512), atol=0.01)
    assert torch.allclose(images / images.norm(), centred / centred.norm(), atol=1e-3)
    assert torch.allclose((captions.mean(dim=0) + questions.mean(dim=0)) / 2, torch.zeros(512), atol=0.01)
    for features in (images, questions):
        assert features.std(dim=0).square().mean().sqrt() == pytest.approx(1, abs=0.01)


def test_texts_are_numbered_in_the_order_of_clips_tokens() -> None:
    texts = ["What color is this mug? red", "a red mug"]
    numbers = pairs.compact(texts)
    tokens = clip_tokenize(texts)
    assert torch.equal(pairs.tokens_in_use()[numbers], tokens[:, : numbers.shape[1]].long())
    assert torch.equal(numbers.argmax(dim=1), tokens.argmax(dim=1))
    with pytest.raises(ValueError, match="'a xylophone' has a token that no drawn caption or question has"):
        pairs.compact(["a mug", "a xylophone"])


def test_questions_that_ask_the_same_are_paraphrases() -> None:
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    scale = torch.tensor(20.0)
    assert paraphrase_loss(features, scale, torch.tensor([0, 0, 1, 1])) < 1e-3
    assert paraphrase_loss(features, scale, torch.tensor([0, 1, 0, 1])) > 5
    assert torch.isfinite(paraphrase_loss(features, scale, torch.tensor([0, 0, 1, 2])))


def test_all_true_captions_share_a_pictures_target() -> None:
    features = torch.eye(3)
    own = torch.eye(3, dtype=torch.bool)
    assert contrastive_loss(features, features, torch.tensor(50.0), own) < 1e-6
    both = own | torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    assert contrastive_loss(features, features, torch.tensor(50.0), both) > 5
    shared = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert contrastive_loss(shared, shared, torch.tensor(50.0), both) < 0.5


def test_an_output_that_is_a_folder_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--pictures", "2"])
    assert f"got --out {tmp_path}, a folder; expected a file" in capsys.readouterr().err
