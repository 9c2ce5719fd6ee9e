"""InternVL: all tiles of an image and its thumbnail in one run of tokens between two delimiters."""

from __future__ import annotations

import dataclasses

from vlm_jax.data.huggingface.marks.marks import Files, Marks, Sizes, told
from vlm_jax.models.tokens import AspectTiles


@dataclasses.dataclass(frozen=True)
class InternVLMarks(Marks):
    start: str = "<img>"
    end: str = "</img>"

    def written(self, sizes: Sizes) -> list[str]:
        return [self.start + tokens + self.end for tokens in super().written(sizes)]


def marks(files: Files) -> InternVLMarks:
    key = "image_seq_length"
    tokens = told(key, files.processor.get(key), files.config.get(key), 256)
    mark = files.token("context_image_token", "<IMG_CONTEXT>")
    return InternVLMarks(mark, mark, dataclasses.replace(files.layout(AspectTiles), tokens=tokens),
                         files.token("start_image_token", "<img>"), files.token("end_image_token", "</img>"))
