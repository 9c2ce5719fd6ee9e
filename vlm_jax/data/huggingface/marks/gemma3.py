"""Gemma 3: soft tokens between begin and end of an image, with blank lines around; perhaps crops after the whole."""

from __future__ import annotations

import dataclasses
from typing import Sequence

import numpy as np

from vlm_jax.data.huggingface.marks.marks import Files, Marks, Sizes, told
from vlm_jax.models.tokens.fixed import Fixed
from vlm_jax.models.tokens.pan_and_scan import PanAndScan


@dataclasses.dataclass(frozen=True)
class Gemma3Marks(Marks):
    """The mark, begin of an image, is also the first token of each."""

    tokens: int = 256
    end: str = "<end_of_image>"

    def written(self, sizes: Sizes) -> list[str]:
        one = f"\n\n{self.mark}{self.token * self.tokens}{self.end}\n\n"
        crops = [self.layout.count(width, height) // self.tokens - 1 for width, height in sizes]
        return [one if not n else f"Here is the original image {one} and here are some crops to help you see better "
                + " ".join([one] * n) for n in crops]

    def fields(self, is_image: np.ndarray, learnt: np.ndarray, images: Sequence[int]) -> dict[str, np.ndarray]:
        return {"token_type_ids": is_image.astype(np.int64)}


def marks(files: Files) -> Gemma3Marks:
    key = "image_seq_length"
    tokens = told(key, files.processor.get(key), files.images.get(key), files.config.get("mm_tokens_per_image"), 256)
    layout = Fixed(tokens)
    if files.images.get("do_pan_and_scan"):
        scan = lambda name, default: files.images.get(f"pan_and_scan_{name}") or default
        layout = PanAndScan(tokens, scan("min_crop_size", 256), scan("max_num_crops", 4),
                            scan("min_ratio_to_activate", 1.2))
    return Gemma3Marks(files.token("boi_token", "<start_of_image>"), files.token("image_token", "<image_soft_token>"),
                       layout, tokens, files.token("eoi_token", "<end_of_image>"))
