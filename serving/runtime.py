"""Locate Triton in ``nvidia-pytriton``'s wheel and compose a backends folder that runs ONNX graphs.

The wheel has the server, its Python backend, and one stub per Python version, in different folders. Copies of them plus
``onnxruntime/model.py`` make up the backend ``onnxruntime``, which runs in this environment's Python:
https://github.com/triton-inference-server/backend/blob/main/docs/python_based_backends.md
"""

from __future__ import annotations

import errno
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from serving import ServingError

STUB = "triton_python_backend_stub"  # the program that runs a model instance of the Python backend
MIN_GLIBC = (2, 35)  # the wheel's platform tag is manylinux_2_35

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_OWN_BACKENDS = Path(__file__).with_name("backends")
_MISSING_LIBRARY = 127  # exit status of the dynamic loader


@dataclass(frozen=True)
class Runtime:
    """Triton's folder in the wheel, and the folder of the wheel's libraries."""

    triton: Path
    libraries: Path

    @property
    def server(self) -> Path:
        """The executable ``tritonserver``."""
        return self.triton / "bin" / "tritonserver"

    @property
    def caches(self) -> Path:
        """The folder of the response caches."""
        return self.triton / "caches"

    def environment(self) -> dict[str, str]:
        """Environment variables with which copies of the stub find their libraries and this Python."""
        libraries = [str(self.libraries), *map(str, _libpython_folders()), os.environ.get("LD_LIBRARY_PATH")]
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        return {
            # photos of many sizes fragment malloc's arenas; with an arena per thread, memory keeps growing
            "MALLOC_ARENA_MAX": "2",
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            "PATH": os.pathsep.join(path),
            # ONNX Runtime 1.29 and later send telemetry by default on Linux
            "ORT_DISABLE_TELEMETRY": "1",
        }

    def compose_backends(self, folder: Path) -> None:
        """Make ``folder`` a Triton backends folder with the backends ``python`` and ``onnxruntime``.

        It holds copies, because Triton refuses a library whose real path is outside the folder.

        Raises:
            ServingError: this Python has no stub in the wheel, or the folder cannot be written.
        """
        stub = self.triton / "python_backend_stubs" / _PYTHON / STUB
        if not stub.is_file():
            raise ServingError(
                f"nvidia-pytriton's wheel has no Python backend for Python {_PYTHON}: use Python 3.10, 3.11 or 3.12"
            )
        try:
            shutil.copytree(_OWN_BACKENDS, folder, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copytree(self.triton / "backends" / "python", folder / "python")
            shutil.copy(stub, folder / "python")
        except OSError as error:  # copytree's lists every file
            free_mib = shutil.disk_usage(folder.parent).free >> 20
            raise ServingError(
                f"Triton's backends cannot be copied to {folder.parent} ({free_mib} MiB free): make room there, or set "
                "TMPDIR to another folder"
            ) from error


def find_runtime() -> Runtime:
    """Find Triton in this environment.

    Raises:
        ServingError: the platform is not supported, or a package is not installed.
    """
    check_platform(sys.platform, platform.machine(), platform.libc_ver())
    _package_folder("onnxruntime", "onnxruntime-gpu")
    pytriton = _package_folder("pytriton", "nvidia-pytriton")
    return Runtime(pytriton / "tritonserver", pytriton.parent / "nvidia_pytriton.libs")


def check_platform(system: str, machine: str, libc: tuple[str, str]) -> None:
    """Check that the wheel's programs run on ``system`` and ``machine`` with ``libc`` (name, version).

    Raises:
        ServingError: the platform is not Linux on x86_64, or its C library is not glibc or too old.
    """
    got = f"{system} on {machine} with {' '.join(libc).strip() or 'an unknown C library'}"
    fits = (system, machine, libc[0]) == ("linux", "x86_64", "glibc")
    if not fits or tuple(int(part) for part in libc[1].split(".")) < MIN_GLIBC:
        raise ServingError(
            f"the embedded Triton needs Linux on x86_64 with glibc {'.'.join(map(str, MIN_GLIBC))} or newer, this "
            f"is {got}: serve the same repository with NVIDIA's Triton container instead"
        )


def check_stub(stub: Path, environment: dict[str, str]) -> None:
    """Check that the Python backend's stub finds its libraries. Without them, Triton would wait until its timeout.

    Raises:
        ServingError: a library is missing, or the stub's folder is mounted noexec.
    """
    for delay_s in (0.05, 0.1, 0.2, 0.4, 0.8, None):
        try:
            run = subprocess.run([stub], env=environment, capture_output=True, text=True, check=False)
            break
        except PermissionError as error:
            raise ServingError(
                f"programs in {stub.parent} cannot be executed (mounted noexec?): set TMPDIR to another folder"
            ) from error
        except OSError as error:
            # a process that another thread started while the stub was copied has it open until it executes its program
            if error.errno != errno.ETXTBSY or delay_s is None:
                raise
            time.sleep(delay_s)
    if run.returncode == _MISSING_LIBRARY:
        raise ServingError(
            f"Triton's Python backend does not start: {run.stderr.strip().rpartition('libraries: ')[2]}; for libpython "
            f"install the package libpython{_PYTHON}, or use a Python built with --enable-shared (uv, conda)"
        )


def _package_folder(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(module)  # importing would take seconds
    if spec is None or spec.origin is None:
        raise ServingError(f"{package} is not installed in {sys.prefix}: run `pip install -e '.[serve]'`")
    return Path(spec.origin).parent


def _libpython_folders() -> list[Path]:
    """Folder of this Python's shared library; empty if the dynamic loader finds it, or if there is none."""
    variables = sysconfig.get_config_vars("LIBDIR", "MULTIARCH", "INSTSONAME")
    folder, architecture, name = (str(variable or "") for variable in variables)
    candidates = [Path(folder), Path(folder, architecture), Path(sys.base_prefix, "lib")]
    return [candidate for candidate in candidates if (candidate / name).is_file()][:1]
