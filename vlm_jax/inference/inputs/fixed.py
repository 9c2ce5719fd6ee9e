"""Images of one size with the same number of visual tokens each: LLaVA 1.5, PaliGemma, Gemma 3, and tiles that count as
images of their own (InternVL)."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens import tokens_per_tile

NAMES = ("pixel_values",)
Arrays = dict[str, np.ndarray]


def arrange(config: ModelConfig, inputs: Mapping[str, np.ndarray], is_image: np.ndarray) -> tuple[Arrays, Any]:
    """({image_index [b, t]}, images [b, slots, h, w, 3]) of `pixel_values` [n, 3, h, w] in reading order.

    Rows with fewer images than the others get black ones, which no token shows.
    """
    used, pixels = _used_slots(config, is_image), np.asarray(inputs["pixel_values"], np.float32)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or len(pixels) != used.sum():
        raise ValueError(f"pixel_values are {pixels.shape}; input_ids have places for {used.sum()} images, "
                         f"[{used.sum()}, 3, height, width].")
    images = np.zeros((*used.shape, *pixels.shape[2:], 3), np.float32)
    images[used] = pixels.transpose(0, 2, 3, 1)
    return {"image_index": running_index(is_image)}, images


def shown(config: ModelConfig, prompt: Arrays, images: Any, seen: Arrays) -> Arrays:
    """What the eyes gave for the images alone, empty slots left out: `vision`, `projector`,
    `image_features` and, of a model with one, `qformer` [n, queries, w]."""
    used = _used_slots(config, prompt["image_index"] >= 0).ravel()
    vision, projector = seen["vision_states"][used], seen["projector"][used]
    queries = {"qformer": seen["queries"][used]} if "queries" in seen else {}
    return queries | {
        "vision": vision, "projector": projector, "image_features": projector.reshape(-1, projector.shape[-1])}


def running_index(is_image: np.ndarray) -> np.ndarray:
    """The k-th image token of a row shows visual token k; -1 for text."""
    return np.where(is_image, np.cumsum(is_image, axis=1) - 1, -1).astype(np.int32)


def _used_slots(config: ModelConfig, is_image: np.ndarray) -> np.ndarray:
    """bool [b, slots]: which image slots of each row its tokens show."""
    each, count = tokens_per_tile(config), is_image.sum(axis=1)
    for row in np.flatnonzero(count % each):
        raise ValueError(f"Row {row} has {count[row]} image tokens; an image takes {each}.")
    slots = count // each
    return np.arange(max(slots.max(initial=0), 1)) < slots[:, None]
