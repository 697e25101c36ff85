from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.architectures import write_full_size
from training import reproduce
from training.backbone import FrozenClip
from training.download import DownloadError
from training.reproduce import comparison
from training.run import read_run


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(some_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that has the photos as train and val, archived as VizWiz is."""
    folder = tmp_path_factory.mktemp("site")
    for name, place in (("Annotations", "vqa_data"), ("train", "images"), ("val", "images")):
        (folder / place).mkdir(exist_ok=True)
        shutil.make_archive(str(folder / place / name), "zip", (some_photos / name).resolve())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


@pytest.mark.material
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(["--recipe", "report"], id="report"),
        pytest.param(["--recipe", "best", "--folds", "2"], id="best", marks=pytest.mark.slow),
    ],
)
def test_from_nothing_to_the_comparison(
    site: str, tiny_vit: FrozenClip, recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "VizWiz"
    arguments = ["--data", str(data), "--clip", tiny_vit.source, "--device", "cpu", "--base-url", site]
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    assert reproduce.main([*arguments, *places, *recipe, "--epochs", "3", "--holdout", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "has no Annotations, train, val: downloading" in out

    [folder] = [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]
    assert read_run(folder).config["recipe"]["name"] == recipe[1]
    table = (folder / "reproduction.md").read_text(encoding="utf-8")
    assert table in out
    for name, records in (("val", 50), ("holdout", 10)):
        metrics = json.loads((folder / f"evaluation-{name}" / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["records"] == records
        vqa = f"{metrics['vqa_accuracy_leave_one_out']:.2f} ± {metrics['vqa_accuracy_leave_one_out_margin_95']:.2f}"
        assert ["this run", "tiny.pt", f"{name}, {records}", vqa] in [row[:4] for row in cells(table)]
        assert (folder / f"evaluation-{name}" / "report.html").stat().st_size > 50_000
    assert ["report", "ViT-L/14@336px", "val", "54.21"] in [row[:4] for row in cells(table)]
    assert ["paper", "RN50x64", "test-dev", "60.73"] in [row[:4] for row in cells(table)]
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| | val, in the fit | holdout | val |" in card


def test_what_is_there_is_not_downloaded(some_photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce.download_missing(some_photos, "http://127.0.0.1:9")  # nothing listens there
    assert capsys.readouterr().out == ""


def test_votes_are_downloaded_for_a_recipe_that_needs_them(
    some_photos: Path, tiny_vit: FrozenClip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def download(folder: Path) -> None:
        raise DownloadError(f"asked for the votes of {folder}")

    monkeypatch.setattr(reproduce, "download_quality", download)
    arguments = ["--data", str(some_photos), "--clip", tiny_vit.source, "--runs", str(tmp_path)]
    with pytest.raises(DownloadError, match="asked for the votes"):
        reproduce.run_command(reproduce.parse_arguments([*arguments, "--answerable-quality", "yes"]))


def test_the_published_scores_of_the_same_clip_alone() -> None:
    table = comparison({}, ["RN50x64"]).splitlines()
    assert len(table) == 2 + 4
    assert all("RN50x64" in line for line in table[2:])
    assert len({len(line) for line in table}) == 1  # aligned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "ViT-B/7"], "error: no CLIP 'ViT-B/7'"),
        (["--epochs", "0"], "error: --epochs must be at least 1, got 0"),
        (["--holdout", "1.5"], "error: --holdout must be above 0 and below 1, got 1.5"),
    ],
)
def test_bad_input_is_one_clear_line(
    some_photos: Path,
    tiny_vit: FrozenClip,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = [] if "--clip" in arguments else ["--clip", tiny_vit.source]
    places = ["--data", str(some_photos), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    assert reproduce.main([*places, *clip, "--base-url", "http://127.0.0.1:9", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-L/14@336px", "RN50x64"])
def test_at_full_architecture_size(name: str, some_photos: Path, tmp_path: Path) -> None:
    """OpenAI's architecture with random weights on the 50 real photos, from the photos to the comparison."""
    checkpoint = write_full_size(name, tmp_path / "random.pt")
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    assert reproduce.main(["--data", str(some_photos), "--clip", str(checkpoint), "--holdout", "0.2", *places]) == 0
    [table] = (tmp_path / "runs").glob("*/reproduction.md")
    rows = cells(table.read_text(encoding="utf-8"))
    assert [row[2] for row in rows if row[0] == "this run"] == ["val, 50", "holdout, 10"]
