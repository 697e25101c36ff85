"""Triton's Python model ``preprocess``: its name, and its folder in the repository."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

from export import repository, triton_config
from export.parity_inputs import GOLDEN_QUESTION
from export.triton_config import Sizes
from serving.repository import MADE_FROM_FILE, PYTHON_FILE, VERSION
from training.artifacts import digest_of, file_digest, write_json
from vizwiz_client.contract import tensors

MODEL_FILE = Path(__file__).with_name("preprocess_model.py")


def model_name(sizes: Sizes, export_format: str) -> str:
    """Its name, which says what it was made from."""
    parts = (str(tensors.CONTRACT_VERSION), str(sizes.image_size), export_format, file_digest(MODEL_FILE))
    return tensors.PREPROCESS_PREFIX + digest_of(*parts)[: tensors.DIGEST_LENGTH]


def write_model(folder: Path, sizes: Sizes, export_format: str, photo: bytes) -> None:
    """Write the model into ``folder``, which bears its name; the golden ``photo`` is what it warms up on."""
    path = folder / VERSION / PYTHON_FILE
    path.parent.mkdir(parents=True)
    copyfile(MODEL_FILE, path)
    config = triton_config.preprocess_config(folder.name, sizes, path)
    sample = {tensors.IMAGE_BYTES: photo, tensors.QUESTION: GOLDEN_QUESTION.encode()}
    triton_config.add_warmup(folder, config, {"golden": sample})
    made_from = {
        "contract_version": tensors.CONTRACT_VERSION,
        "image_size": sizes.image_size,
        "export_format": export_format,
    }
    write_json(folder / MADE_FROM_FILE, made_from)
    repository.write_config(folder, config)
