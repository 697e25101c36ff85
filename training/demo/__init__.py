"""The embedded demo material: a small VizWiz-shaped data set and a small CLIP, both made by the code here."""

from pathlib import Path

DEMO_CLIP = Path(__file__).with_name("clip_demo.pt")


def ensure_demo_dataset(folder: Path = Path("data/demo")) -> Path:
    return folder
