"""LLaVA-NeXT: the whole image and tiles of a larger copy, each row of them ended by a newline token."""

from __future__ import annotations

import dataclasses

from vlm_jax.data.huggingface.marks import llava
from vlm_jax.data.huggingface.marks.marks import Files, Marks, Sizes
from vlm_jax.models.tokens import AnyRes


@dataclasses.dataclass(frozen=True)
class NextMarks(Marks):
    """`kept`: tokens of the whole image beside those of its patches."""

    kept: int = 0

    def written(self, sizes: Sizes) -> list[str]:
        return [self.token * (self.layout.count(*size) + self.kept) for size in sizes]


def marks(files: Files) -> NextMarks:
    layout = files.layout(AnyRes)
    layout = dataclasses.replace(layout, side=layout.tile // llava.patch(files))
    return NextMarks(files.image_token(), files.image_token(), layout, llava.kept(files))
