"""How many visual tokens an image costs: the one function that data, models and cost estimates all ask.

Plain integers and no JAX, so that a data worker can import it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar


@dataclasses.dataclass(frozen=True)
class Layout:
    """How images of any size become visual tokens, where that is more than one fixed grid.

    A subclass has a module of its own here, a `kind` by which configs name it, and `count`.
    """

    newline: ClassVar[bool] = False  # whether a learned token ends each row of patches

    def count(self, model: Any, width: int, height: int) -> int:
        """Visual tokens of an image of `width` x `height` pixels in the decoder's row; `model` holds the layout."""
        raise NotImplementedError


def patch_grid(image_size: int, patch_size: int, drop_remainder: bool = False) -> tuple[int, int]:
    """(rows, columns) of patches of a square image.

    Where they do not tile it, the pixels left over at the right and bottom are dropped if asked for, else it raises.
    """
    if image_size % patch_size and not drop_remainder:
        raise ValueError(
            f"image_size {image_size} is not divisible by patch_size {patch_size}; "
            f"use {image_size // patch_size * patch_size} or {(image_size // patch_size + 1) * patch_size} pixels."
        )
    return image_size // patch_size, image_size // patch_size


def num_visual_tokens(model: Any, width: int, height: int) -> int:
    """Visual tokens that an image of `width` x `height` pixels takes in the decoder's row.

    `model` is a loaded model, a model config or a vision config. A fixed-size encoder resizes every image to its
    own `image_size`, so that V = (image_size / patch_size)^2 whatever the image: 576 at 336/14, 196 at 224/16. A
    connector with a reducer leaves `factor` times fewer rows and columns of them: 256 at 896/14 with 4.
    """
    if width < 1 or height < 1:
        raise ValueError(f"An image of {width} x {height} pixels has no tokens; width and height must be positive.")
    model = getattr(model, "config", model)  # a loaded model holds a config, a model config holds the vision config
    vision, connector = getattr(model, "vision", model), getattr(model, "connector", None)
    rows, columns = patch_grid(vision.image_size, vision.patch_size, getattr(vision, "drop_remainder", False))
    factor = 1 if connector is None else connector.factor
    return (rows // factor) * (columns // factor) + getattr(vision, "extra_features", 0)
