"""LLaVA-OneVision: LLaVA-NeXT's tiles, shrunk where they are many; of several images in a prompt none is tiled."""

from __future__ import annotations

import dataclasses
import math

from vlm_jax.data.huggingface.marks.llava import SELECT
from vlm_jax.data.huggingface.marks.marks import Files, Marks, Sizes, told
from vlm_jax.models.tokens import AnyRes


@dataclasses.dataclass(frozen=True)
class OneVisionMarks(Marks):
    """`kept`: tokens of the whole image beside those of its patches."""

    kept: int = 0

    def written(self, sizes: Sizes) -> list[str]:
        return [self.token * (self.layout.count(*size, tiled=len(sizes) == 1) + self.kept) for size in sizes]


def marks(files: Files) -> OneVisionMarks:
    grid = (files.vision("image_size") or 0) // (files.vision("patch_size") or 1)
    tokens = told("num_image_tokens", files.processor.get("num_image_tokens"), grid**2 or None)
    aspect = "vision_aspect_ratio"
    most = files.processor.get(aspect) or files.config.get(aspect) or "anyres_max_9"
    strategy = files.processor.get(SELECT) or files.config.get(SELECT, "full")
    layout = dataclasses.replace(
        files.layout(AnyRes), side=math.isqrt(tokens), max_tiles=int(most.removeprefix("anyres_max_")))
    return OneVisionMarks(files.image_token(), files.image_token(), layout, -int(strategy == "default"))
