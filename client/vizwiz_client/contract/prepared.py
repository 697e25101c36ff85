"""A photo as a model takes it: decoded once, and resized for each image input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vizwiz_client.contract.image import Photo, load_photo, to_pixels
from vizwiz_client.contract.tensors import ImageInput


@dataclass(frozen=True, eq=False)
class PreparedPhoto:
    """A photo that :func:`prepare` decoded and resized for the image inputs of a model."""

    inputs: tuple[ImageInput, ...]
    pixels: Mapping[str, npt.NDArray[np.uint8]]  # uint8 [S, S, 3] by the input's name


def prepare(photo: Photo, inputs: Sequence[ImageInput], *, fast_decode: bool = False) -> PreparedPhoto:
    """Decode a photo once, and resize it for each image input of a model.

    A client takes the result in place of the photo, so decoding can run elsewhere: in a process or a thread pool of the
    caller's own.

    Args:
        photo: path, bytes, file object, PIL image or NumPy array, as for ``VizwizClient.ask``.
        inputs: the model's image inputs, ``VizwizClient.check().images``.
        fast_decode: let the JPEG decoder shrink a large photo: several times faster, but the pixels differ slightly.

    Raises:
        ImageError: the photo cannot be used.
    """
    decoded = load_photo(photo, max(each.image_size for each in inputs) if fast_decode else None)
    pixels = {each.name: to_pixels(decoded, each.image_size, squash=each.squash) for each in inputs}
    return PreparedPhoto(tuple(inputs), pixels)
