"""Gemma 3: soft tokens between begin and end of an image, with blank lines around; perhaps crops after the whole."""

from __future__ import annotations

import dataclasses

import numpy as np

from vlm_jax.data.huggingface.marks.marks import Files, Marks, Sizes, told
from vlm_jax.models.tokens import Fixed, PanAndScan


@dataclasses.dataclass(frozen=True)
class Gemma3Marks(Marks):
    """The mark, begin of an image, is also the first token of each."""

    end: str = "<end_of_image>"

    def written(self, sizes: Sizes) -> list[str]:
        one = f"\n\n{self.mark}{self.token * self.layout.tokens}{self.end}\n\n"
        crops = [self.layout.tiles(width, height) - 1 for width, height in sizes]
        return [one if not n else f"Here is the original image {one} and here are some crops to help you see better "
                + " ".join([one] * n) for n in crops]

    def fields(self, is_image: np.ndarray, learnt: np.ndarray) -> dict[str, np.ndarray]:
        return {"token_type_ids": is_image.astype(np.int64)}


def marks(files: Files) -> Gemma3Marks:
    key = "image_seq_length"
    tokens = told(key, files.processor.get(key), files.pixels.get(key), files.config.get("mm_tokens_per_image"), 256)
    layout = dataclasses.replace(files.layout(Fixed | PanAndScan), tokens=tokens)
    return Gemma3Marks(files.token("boi_token", "<start_of_image>"), files.token("image_token", "<image_soft_token>"),
                       layout, files.token("eoi_token", "<end_of_image>"))
