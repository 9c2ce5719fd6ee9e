"""LLaVA-NeXT: the whole image and tiles of a larger copy, each row of them ended by a newline token."""

from __future__ import annotations

import dataclasses

from vlm_jax.data.huggingface.marks import llava
from vlm_jax.data.huggingface.marks.marks import Files, Marks, Sizes, told
from vlm_jax.models.tokens.anyres import AnyRes


@dataclasses.dataclass(frozen=True)
class NextMarks(Marks):
    """`kept`: tokens of the whole image beside those of its patches."""

    kept: int = 0

    def written(self, sizes: Sizes) -> list[str]:
        return [self.token * (self.layout.count(*size) + self.kept) for size in sizes]


def marks(files: Files) -> NextMarks:
    side = tile(files)
    layout = AnyRes(side, side // llava.patch(files), pinpoints(files))
    return NextMarks(files.image_token(), files.image_token(), layout, llava.kept(files))


def tile(files: Files) -> int:
    """Pixels a side of a tile."""
    size = files.images["size"]
    return size if isinstance(size, int) else size.get("shortest_edge") or min(size["height"], size["width"])


def pinpoints(files: Files) -> tuple[tuple[int, int], ...]:
    """The canvases, (height, width) in pixels."""
    key = "image_grid_pinpoints"
    return tuple((height, width) for height, width in told(key, files.images.get(key), files.config.get(key)))
