"""Images as they lie in a file: counted without being read, and decoded when one is asked for."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Callable

import numpy as np
from etils import epath
from PIL import Image

from vlm_jax.data import images


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """Errors call it image `name` of the entry `where`; `read` returns its file's bytes."""

    where: str
    name: str
    read: Callable[[], bytes]

    def open(self) -> np.ndarray:
        """H x W x 3 uint8. Raises FileNotFoundError where there is no file, ValueError as `images.decode` does."""
        try:
            return images.decode(self.read(), self.name)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{self.where}: {error}") from error


class EncodedImages(Sequence):
    """The images of a record: `record.images[0]` decodes the first, `len(record.images)` reads nothing."""

    def __init__(self, files: Sequence[EncodedImage]):
        self.files = tuple(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index):
        return EncodedImages(self.files[index]) if isinstance(index, slice) else self.files[index].open()


def from_folder(folder: epath.Path, names: Sequence[str], where: str) -> EncodedImages:
    """The image files called `names`, relative to a folder."""
    paths = [folder / name for name in names]
    return EncodedImages([EncodedImage(where, str(path), lambda path=path: images.read_bytes(path)) for path in paths])


def from_bytes(files: Sequence[bytes], names: Sequence[str], where: str) -> EncodedImages:
    """Image files that came with their record."""
    return EncodedImages([EncodedImage(where, name, lambda data=data: data) for data, name in zip(files, names)])


def as_png(image: np.ndarray) -> bytes:
    """H x W x 3 uint8 as a PNG file, without loss."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
