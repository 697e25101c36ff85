"""What `pip install .` brings: the client alone, for the Python that runs this."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

MB = 1e6
LARGEST = 3


def install_sizes() -> list[tuple[str, str, str]]:
    """Rows of a table: bytes to download and installed, without pip and the interpreter."""
    with tempfile.TemporaryDirectory() as place:
        wheels, target = Path(place) / "wheels", Path(place) / "installed"
        pip("wheel", "--no-deps", "--wheel-dir", str(wheels), ".")
        (wheel,) = wheels.iterdir()
        pip("download", "--only-binary=:all:", "--dest", str(wheels), str(wheel))
        pip("install", "--no-index", "--find-links", str(wheels), "--target", str(target), str(wheel))
        download = {path.name.split("-")[0]: path.stat().st_size for path in wheels.iterdir()}
        installed = {path.name: size(path) for path in target.iterdir()}
    return [
        (f"download, {len(download)} packages: {largest(download)}", f"{sum(download.values()) / MB:.1f} MB", "45 MB"),
        (f"installed: {largest(installed)}", f"{sum(installed.values()) / MB:.1f} MB", "165 MB"),
        ("of which this project", f"{installed['vizwiz_client'] / MB:.2f} MB", ""),
    ]


def pip(*arguments: str) -> None:
    """Run pip."""
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def size(path: Path) -> int:
    """Bytes in the files of ``path``."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def largest(sizes: dict[str, int]) -> str:
    """The largest, in words."""
    best = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST]
    return ", ".join(f"{name} {sizes[name] / MB:.0f}" for name in best)
