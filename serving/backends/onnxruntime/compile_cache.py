"""Cache of the graphs that OpenVINO has compiled for this CPU, so that a second start does not compile them again.

One file per graph: the blob of ``CompiledModel.export_model``, then its SHA-256, which is verified first: OpenVINO does
not validate the blob. :mod:`serving.cache_folder` names the folder, and removes the files of pruned models.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as triton

FOLDER_VARIABLE = "VIZWIZ_SERVING_CACHE"  # as in serving/cache_folder.py; the supervisor sets it
SUFFIX = ".openvino"
MAX_BYTES = 4 << 30  # of all files; least recently used files are deleted first
_DIGEST_BYTES = 32

_mapped: list[Any] = []  # files whose weights a loaded graph reads where they are: they must stay mapped


def compile_model(core: Any, graph: Path, model: str, digest: str | None, options: Mapping[str, Any]) -> Any:
    """Compile ``graph`` on the CPU, or load what an earlier start has compiled.

    No error of the cache fails a start: it is logged as a warning, and the graph compiled. A file that is damaged or
    cannot be loaded is removed.

    Args:
        core: ``openvino.Core``.
        graph: the ONNX file.
        model: name of the Triton model, with which the name of the file begins.
        digest: SHA-256 of ``graph``, or None: it is then compiled without the cache.
        options: of the compilation.

    Returns:
        ``openvino.CompiledModel``.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder or digest is None or not _is_private(Path(folder)):
        return core.compile_model(graph, "CPU", dict(options))
    try:
        path = Path(folder, f"{model}-{cache_key(core, digest, options)}{SUFFIX}")
    except Exception as error:  # such as StopIteration: /proc/cpuinfo of some CPUs has no "flags"
        triton.Logger.log_warn(f"{model} is not cached: its cache key cannot be computed ({error!r})")
        return core.compile_model(graph, "CPU", dict(options))
    if (compiled := _load(core, path, options)) is None:
        compiled = core.compile_model(graph, "CPU", dict(options))
        try:
            _save(compiled, path)
        except Exception as error:  # whatever it is, such as a full disk: the graph is compiled
            triton.Logger.log_warn(f"{model} will be compiled again at the next start: {path}: {error}")
    else:
        triton.Logger.log_info(f"{model} is loaded from {path}")
    return compiled


def cache_key(core: Any, digest: str, options: Mapping[str, Any]) -> str:
    """All that a compiled graph depends on, as 16 hex digits: the graph, OpenVINO's version, the CPU, the options."""
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    openvino = core.get_versions("CPU")["CPU"].build_number
    cpu = core.get_property("CPU", "FULL_DEVICE_NAME"), core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return hashlib.sha256(repr((digest, openvino, cpu, flags, sorted(options.items()))).encode()).hexdigest()[:16]


def _is_private(folder: Path) -> bool:
    """Whether ``folder``, created if missing, is this user's alone: OpenVINO does not validate a blob."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return True
        reason = "other users may write there"
    except OSError as error:
        reason = str(error)
    triton.Logger.log_warn(f"compiled models are not cached in {folder}: {reason}")
    return False


def _load(core: Any, path: Path, options: Mapping[str, Any]) -> Any:
    import openvino

    content: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
    compiled, problem = None, "is damaged (its SHA-256 is wrong)"
    try:
        if path.stat().st_size:  # an empty file cannot be mapped
            content = np.memmap(path, np.uint8, "c")  # copy-on-write: OpenVINO asks for writable memory
        blob, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(blob.data).digest() == digest.tobytes():
            compiled = core.import_model(openvino.Tensor(blob, shared_memory=True), "CPU", dict(options))
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever it is: the graph is there to be compiled
        problem = f"cannot be loaded ({error})"
    if compiled is None:
        triton.Logger.log_warn(f"{path} {problem}: the graph is compiled again")
        with suppress(OSError):
            path.unlink()
        return None
    _mapped.append(content)
    with suppress(OSError):
        os.utime(path)  # the latest to be used
    return compiled


def _save(compiled: Any, path: Path) -> None:
    """Write the file, with mode 0600 and under another name first; then remove old ones beyond :data:`MAX_BYTES`."""
    blob = compiled.export_model().getbuffer()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(blob)
            file.write(hashlib.sha256(blob).digest())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    total = 0
    with suppress(FileNotFoundError):  # another server removes them too
        for each in sorted(path.parent.glob(f"*{SUFFIX}*"), key=lambda each: each.stat().st_mtime, reverse=True):
            total += each.stat().st_size
            if total > MAX_BYTES and each != path:
                each.unlink()
