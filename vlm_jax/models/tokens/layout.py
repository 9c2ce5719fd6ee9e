"""What all layouts have in common."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class Layout(abc.ABC):
    """How images of any size become visual tokens.

    A subclass has a module of its own here, a `kind` by which configs name it, and besides `count` the geometry that
    image processor and model share. Everything is a function of the image's width and height in pixels.
    """

    newline: ClassVar[bool] = False  # whether a learned token ends each row of patches

    @abc.abstractmethod
    def count(self, width: int, height: int) -> int:
        """Visual tokens in the decoder's row, without marks around them."""

    def tiles(self, width: int, height: int) -> int:
        """Images that the encoder sees of this one."""
        return 1
