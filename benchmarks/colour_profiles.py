"""What a colour profile that nobody applies changes: photos stored as Display P3, as iPhones do, and read as sRGB.

    python -m benchmarks.colour_profiles                       # 300 photos of the demo
    python -m benchmarks.colour_profiles --photos VizWiz/val   # and real photos

Pixels, and features of the demo's CLIP. Each photo is compared with itself in sRGB; JPEG at two qualities is there for
comparison. A few minutes on two cores. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import io
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from demo import DEMO_CLIP, ensure_demo_dataset
from training.backbone import FrozenClip, load_clip
from training.dataset import read_split
from vizwiz_client.contract.image import load_photo, to_pixels

PHOTOS = 300
DISPLAY_P3 = {  # adapted to D50: https://www.color.org/chardata/rgb/DisplayP3.xalter
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}
COLUMNS = ("photos", "read as", "pixels: mean change", "99th percentile", "features: 1 - cosine, median", "greatest")
Pixels = npt.NDArray[np.uint8]


def display_p3() -> ImageCms.ImageCmsProfile:
    """The profile: sRGB's, whose curve it shares, with other primaries."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag, xyz in DISPLAY_P3.items():
        entry = data.index(tag, 128)  # tags follow the header: name, offset, length
        start = int.from_bytes(data[entry + 4 : entry + 8], "big") + 8
        data[start : start + 12] = struct.pack(">3i", *(round(65536 * value) for value in xyz))
    return ImageCms.ImageCmsProfile(io.BytesIO(data))


def as_p3(photo: Image.Image) -> Image.Image:
    """The numbers that a file in Display P3 holds for the same colours."""
    converted = ImageCms.profileToProfile(photo, ImageCms.createProfile("sRGB"), display_p3(), outputMode="RGB")
    assert converted is not None
    return converted


def as_jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """The photo after another round of JPEG."""

    def encode(photo: Image.Image) -> Image.Image:
        photo.save(buffer := io.BytesIO(), "JPEG", quality=quality)
        return load_photo(buffer)

    return encode


WAYS = {"Display P3, profile ignored": as_p3, "JPEG, quality 90": as_jpeg(90), "JPEG, quality 75": as_jpeg(75)}


def compare(name: str, clip: FrozenClip, paths: Sequence[Path]) -> None:
    """Print the lines of the table for these photos."""
    photos = [load_photo(path) for path in paths]
    right = np.stack([to_pixels(photo, clip.image_size) for photo in photos])
    before = clip.encode_images(right)
    for way, change in WAYS.items():
        pixels = np.stack([to_pixels(change(photo), clip.image_size) for photo in photos])
        after = clip.encode_images(pixels)
        apart = np.abs(pixels.astype(int) - right)
        cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
        cells = [name, way, f"{apart.mean():.2f}", f"{np.percentile(apart, 99):.0f}"]
        cells += [f"{np.median(1 - cosine):.1e}", f"{(1 - cosine).max():.1e}"]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.colour_profiles", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of real photos in sRGB, such as VizWiz/val")
    arguments = parser.parse_args()
    clip = load_clip(DEMO_CLIP)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    with tempfile.TemporaryDirectory() as folder:
        data = ensure_demo_dataset(Path(folder) / "demo", train=10, val=PHOTOS, test=10)
        compare(f"demo, {PHOTOS}", clip, read_split(data, "val").photo_paths())
    if arguments.photos:
        paths = sorted(arguments.photos.glob("*.jpg"))[:PHOTOS]
        compare(f"real, {len(paths)}", clip, paths)


if __name__ == "__main__":
    main()
