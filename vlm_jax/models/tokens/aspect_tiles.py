"""Tiles of the grid whose aspect ratio is nearest, and a thumbnail: InternVL 1.5 (arXiv 2404.16821)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from vlm_jax.models.tokens.layout import Layout


@dataclasses.dataclass(frozen=True)
class AspectTiles(Layout):
    """The image is squashed to a grid of `min_tiles` to `max_tiles` tiles of `tile` (height, width) pixels; where there
    is more than one, a thumbnail of the whole is the last. Each has `tokens`.

    | pixels (tile 448, 256 tokens, 1 to 12 tiles) | grid (rows, columns) | tiles | count |
    |---|---|---|---|
    | 336 x 336 | 1, 1 | 1 | 256 |
    | 640 x 480 | 3, 4 | 13 | 3328 |
    """

    kind: ClassVar[str] = "aspect_tiles"
    tile: tuple[int, int]
    tokens: int
    min_tiles: int = 1
    max_tiles: int = 12

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns). Of equally near ratios the larger grid, if the image has over half of its pixels."""
        pixels, best = self.tile[0] * self.tile[1], (1, 1)
        nearest = float("inf")
        for rows, columns in _grids(self.min_tiles, self.max_tiles):
            distance = abs(width / height - columns / rows)
            if distance < nearest or distance == nearest and width * height > 0.5 * pixels * rows * columns:
                nearest, best = distance, (rows, columns)
        return best

    def tiles(self, width: int, height: int) -> int:
        """Tiles that the encoder sees, with the thumbnail."""
        rows, columns = self.grid(width, height)
        return 1 if rows * columns == 1 else rows * columns + 1

    def count(self, width: int, height: int) -> int:
        return self.tokens * self.tiles(width, height)


def _grids(fewest: int, most: int) -> list[tuple[int, int]]:
    """By number of tiles, then by columns: ties of the ratio are decided in this order."""
    sides = range(1, most + 1)
    grids = [(rows, columns) for columns in sides for rows in sides if fewest <= rows * columns <= most]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])
