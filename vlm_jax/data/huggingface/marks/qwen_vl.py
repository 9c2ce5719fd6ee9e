"""Qwen2-VL and Qwen2.5-VL: as many tokens as the image's own resolution gives; the template writes the delimiters."""

from __future__ import annotations

import dataclasses
from typing import Sequence

import numpy as np

from vlm_jax.data.huggingface.marks.marks import Files, Marks
from vlm_jax.models.tokens.native import Native


@dataclasses.dataclass(frozen=True)
class QwenVLMarks(Marks):
    def fields(self, is_image: np.ndarray, learnt: np.ndarray, images: Sequence[int]) -> dict[str, np.ndarray]:
        return {"mm_token_type_ids": is_image.astype(np.int64)}


def marks(files: Files) -> QwenVLMarks:
    size = files.images.get("size") or {}
    layout = Native(
        files.images.get("patch_size", 14), files.images.get("merge_size", 2),
        min_pixels=files.images.get("min_pixels") or size.get("shortest_edge") or Native.min_pixels,
        max_pixels=files.images.get("max_pixels") or size.get("longest_edge") or Native.max_pixels)
    mark = files.token("image_token", "<|image_pad|>")
    return QwenVLMarks(mark, mark, layout)
