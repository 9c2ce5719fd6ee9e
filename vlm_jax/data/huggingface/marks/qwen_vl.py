"""Qwen2-VL and Qwen2.5-VL: as many tokens as the image's own resolution gives; the template writes the delimiters."""

from __future__ import annotations

import dataclasses

import numpy as np

from vlm_jax.data.huggingface.marks.marks import Files, Marks
from vlm_jax.models.tokens import Native


@dataclasses.dataclass(frozen=True)
class QwenVLMarks(Marks):
    def fields(self, is_image: np.ndarray, learnt: np.ndarray) -> dict[str, np.ndarray]:
        return {"mm_token_type_ids": is_image.astype(np.int64)}


def marks(files: Files) -> QwenVLMarks:
    mark = files.token("image_token", "<|image_pad|>")
    return QwenVLMarks(mark, mark, files.layout(Native))
