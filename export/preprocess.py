"""The model that makes pixels and token ids of photos and questions: its name, and its folder in the repository."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

from export import repository, store
from export.parity_inputs import GOLDEN_QUESTION
from export.repository import Sizes
from export.warmup import BATCH_SIZES, add_warmup
from training.artifacts import digest_of, file_digest, write_json
from vizwiz_client.contract import tensors

MODEL_FILE = Path(__file__).with_name("preprocess_model.py")


def model_name(sizes: Sizes, export_format: str) -> str:
    """Its name, which says what it was made from."""
    parts = (str(tensors.CONTRACT_VERSION), str(sizes.side), export_format, file_digest(MODEL_FILE))
    return tensors.PREPROCESS_PREFIX + digest_of(*parts)[: tensors.DIGEST_LENGTH]


def write_model(folder: Path, sizes: Sizes, export_format: str, photo: bytes) -> None:
    """Write the model into ``folder``, which bears its name; the golden ``photo`` is what it warms up on."""
    path = folder / repository.VERSION / repository.PYTHON_FILE
    path.parent.mkdir(parents=True)
    copyfile(MODEL_FILE, path)
    config = repository.preprocess_config(folder.name, sizes, path)
    sample = {tensors.IMAGE_BYTES: photo, tensors.QUESTION: GOLDEN_QUESTION.encode()}
    add_warmup(folder, config, {"golden": sample}, BATCH_SIZES)
    made_from = {"contract_version": tensors.CONTRACT_VERSION, "side": sizes.side, "export_format": export_format}
    write_json(folder / store.MADE_FROM_FILE, made_from)
    store.seal(folder, config)
