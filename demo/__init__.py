"""The embedded demo material: a small VizWiz-shaped data set and a small CLIP, both made by the code here."""

from pathlib import Path

from demo.dataset import ensure_demo_dataset

DEMO_CLIP = Path(__file__).with_name("clip_demo.pt")

__all__ = ["DEMO_CLIP", "ensure_demo_dataset"]
