"""The whole image, and crops along its longer side where it is long: Gemma 3 (arXiv 2503.19786)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from vlm_jax.models.tokens.layout import Layout


@dataclasses.dataclass(frozen=True)
class PanAndScan(Layout):
    """`tokens` for the whole image and for each crop. There are crops where the longer side is `min_ratio` times the
    shorter or more: as many as this ratio, 2 to `max_crops`, none of them under `min_crop` pixels.

    | pixels (256 tokens, min_crop 256, max_crops 4, min_ratio 1.2) | crops (rows, columns) | count |
    |---|---|---|
    | 1000 x 1000 | 0, 0 | 256 |
    | 1200 x 400 | 1, 3 | 1024 |
    """

    kind: ClassVar[str] = "pan_and_scan"
    tokens: int
    min_crop: int
    max_crops: int
    min_ratio: float

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of crops, one of them 1; (0, 0) where there are none."""
        long, short = max(width, height), min(width, height)
        if long / short < self.min_ratio:
            return 0, 0
        crops = min(math.floor(long / self.min_crop), math.floor(long / short + 0.5))
        crops = min(self.max_crops, max(2, crops))
        if min(math.ceil(long / crops), short) < self.min_crop:
            return 0, 0
        return (1, crops) if width >= height else (crops, 1)

    def crop(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels of a crop; the last in its row may be smaller."""
        rows, columns = self.grid(width, height)
        return math.ceil(height / max(rows, 1)), math.ceil(width / max(columns, 1))

    def tiles(self, width: int, height: int) -> int:
        """Images that the encoder sees, the whole one first."""
        rows, columns = self.grid(width, height)
        return 1 + rows * columns

    def count(self, width: int, height: int) -> int:
        return self.tokens * self.tiles(width, height)
