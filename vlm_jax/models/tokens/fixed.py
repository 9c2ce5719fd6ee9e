"""The same number of tokens for every image: a fixed grid, perhaps pooled, or a fixed number of queries."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from vlm_jax.models.tokens.layout import Layout


@dataclasses.dataclass(frozen=True)
class Fixed(Layout):
    """`tokens` for each image: LLaVA 1.5, PaliGemma, Gemma 3, BLIP-2."""

    kind: ClassVar[str] = "fixed"
    tokens: int

    def count(self, width: int, height: int) -> int:
        return self.tokens
