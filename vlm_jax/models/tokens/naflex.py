"""Any aspect ratio with at most so many patches: NaFlex, of SigLIP 2 (arXiv 2502.14786)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from vlm_jax.models.tokens.layout import Layout


@dataclasses.dataclass(frozen=True)
class NaFlex(Layout):
    """The image is scaled, up or down, to the most whole patches of `patch` pixels a side that `max_patches` allows.

    | pixels (patch 16, 256 patches) | patches (rows, columns) | count |
    |---|---|---|
    | 224 x 224 | 16, 16 | 256 |
    | 640 x 480 | 14, 18 | 252 |
    """

    kind: ClassVar[str] = "naflex"
    patch: int
    max_patches: int

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of patches: a bisection of the scale between 0 and 100, as the published code does it."""
        at = lambda scale: tuple(max(1, math.ceil(side * scale / self.patch)) for side in (height, width))
        low, high = 1e-6, 100.0
        while high - low >= 1e-5:
            middle = (low + high) / 2
            low, high = (middle, high) if math.prod(at(middle)) <= self.max_patches else (low, middle)
        return at(low)

    def count(self, width: int, height: int) -> int:
        rows, columns = self.grid(width, height)
        return rows * columns
