"""The image's own resolution, with patches merged in squares: Qwen2-VL (arXiv 2409.12191)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from vlm_jax.models.tokens.layout import Layout

MAX_RATIO = 200  # of the longer to the shorter side, as in the published code


@dataclasses.dataclass(frozen=True)
class Native(Layout):
    """Both sides are rounded to multiples of `patch * merge` pixels, the aspect ratio about kept, the area within
    `min_pixels` and `max_pixels`; `merge` x `merge` patches become one token.

    | pixels (patch 14, merge 2, 56^2 to 28^2 * 1280 pixels) | patches (rows, columns) | count |
    |---|---|---|
    | 224 x 224 | 16, 16 | 64 |
    | 1920 x 1080 | 52, 94 | 1222 |
    """

    kind: ClassVar[str] = "native"
    patch: int
    merge: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels after resizing; raises ValueError for a strip over 200 times as long as wide."""
        if max(width, height) > MAX_RATIO * min(width, height):
            raise ValueError(f"An image of {width} x {height} pixels is too thin; one side may be {MAX_RATIO} times "
                             f"the other at most.")
        step = self.patch * self.merge
        sides = [round(side / step) * step for side in (height, width)]  # half to even
        if math.prod(sides) > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            sides = [max(step, math.floor(side / shrink / step) * step) for side in (height, width)]
        elif math.prod(sides) < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            sides = [math.ceil(side * grow / step) * step for side in (height, width)]
        return sides[0], sides[1]

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of patches, before merging."""
        rows, columns = (side // self.patch for side in self.resized(width, height))
        return rows, columns

    def count(self, width: int, height: int) -> int:
        rows, columns = self.grid(width, height)
        return rows * columns // self.merge**2
