"""Rows and columns of square tiles, then the whole image: Idefics3 (arXiv 2408.12637), SmolVLM, nanoVLM."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from vlm_jax.models.tokens.layout import Layout

MAX_SIDE = 4096  # as in the published code, whatever the config asks for


@dataclasses.dataclass(frozen=True)
class RowColumns(Layout):
    """The longer side becomes `longest` pixels (None: stays), then both sides go up to multiples of `tile`; the image
    is cut into tiles, and the whole squashed to one tile is the last. An image of one tile is not cut, and without
    `split` none is. Each tile has `tokens`.

    | 640 x 480 pixels | grid (rows, columns) | tiles | count |
    |---|---|---|---|
    | tile 364, longest 1456, 169 tokens | 4 * 480 / 640 = 3, 4 | 13 | 2197 |
    | the same without `split` | 0, 0 | 1 | 169 |
    """

    kind: ClassVar[str] = "row_columns"
    tile: int
    longest: int | None
    tokens: int
    split: bool = True

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels after the first resizing; the shorter side is even, and 1 at least."""
        if self.longest is None:
            return height, width
        ratio = width / height
        if width >= height:
            width, height = self.longest, int(self.longest / ratio)
            height += height % 2
        else:
            width, height = int(self.longest * ratio), self.longest
            width += width % 2
        width, height = max(width, 1), max(height, 1)
        ratio, long = width / height, max(width, height)
        if long > MAX_SIDE:
            width, height = (MAX_SIDE, int(MAX_SIDE / ratio)) if width >= height else (int(MAX_SIDE * ratio), MAX_SIDE)
        return max(height, 1), max(width, 1)

    def canvas(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels, multiples of the tile, of what is cut."""
        height, width = self.resized(width, height)
        ratio, up = width / height, lambda side: math.ceil(side / self.tile) * self.tile
        if width >= height:
            return up(int(up(width) / ratio)), up(width)
        return up(height), up(int(up(height) * ratio))

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of tiles; (0, 0) where the image is not cut."""
        rows, columns = (side // self.tile for side in self.canvas(width, height))
        return (rows, columns) if self.split and rows * columns > 1 else (0, 0)

    def tiles(self, width: int, height: int) -> int:
        """Tiles that the encoder sees, the whole image with them."""
        rows, columns = self.grid(width, height)
        return rows * columns + 1

    def count(self, width: int, height: int) -> int:
        return self.tokens * self.tiles(width, height)
