"""Tiles of images and the images whole, prompt by prompt, filled up with tiles of zeros: Idefics3 and SmolVLM."""

from __future__ import annotations

import math
from typing import Any, Mapping

import numpy as np

from vlm_jax.inference.inputs import slots
from vlm_jax.inference.inputs.fixed import running_index
from vlm_jax.models.model import ModelConfig

NAMES = ("pixel_values", "pixel_attention_mask")
Arrays = dict[str, np.ndarray]


def arrange(config: ModelConfig, inputs: Mapping[str, np.ndarray], is_image: np.ndarray) -> tuple[Arrays, Any]:
    """({image_index [b, t], image_slots [b]}, tiles as `models.masked_vit` takes them, [b, slots] in front).

    In: `pixel_values` [b, tiles, 3, h, w], where tiles that are zero throughout fill up and are left out; perhaps
    `pixel_attention_mask` [b, tiles, h, w], zero at the padding of a tile. A patch is real where any of its pixels is.
    """
    pixels = np.asarray(inputs["pixel_values"], np.float32)
    if pixels.ndim != 5 or pixels.shape[2] != 3 or len(pixels) != len(is_image):
        raise ValueError(f"pixel_values are {pixels.shape}; give [{len(is_image)}, tiles, 3, height, width], a row a "
                         f"prompt.")
    mask = np.asarray(inputs.get("pixel_attention_mask", np.ones(pixels[:, :, 0].shape))) != 0
    if mask.shape != pixels[:, :, 0].shape:
        raise ValueError(f"pixel_attention_mask is {mask.shape}; pixel_values ask for {pixels[:, :, 0].shape}.")
    patch, factor = config.vision.patch_size, config.connector.factor
    real, each = pixels.any(axis=(2, 3, 4)), math.prod(side // patch // factor for side in pixels.shape[3:])
    for b, (tokens, tiles) in enumerate(zip(is_image.sum(axis=1), real.sum(axis=1))):
        if tokens != tiles * each:
            raise ValueError(f"Row {b} has {tokens} image tokens; its {tiles} tiles take {each} each.")
    pixels, mask = pixels.transpose(0, 1, 3, 4, 2), _patches(mask, patch)
    images = {"pixels": slots.dealt([row[kept] for row, kept in zip(pixels, real)]),
              "mask": slots.dealt([row[kept] for row, kept in zip(mask, real)])}
    return {"image_index": running_index(is_image), "image_slots": real.sum(axis=1)}, images


def shown(config: ModelConfig, prompt: Arrays, images: Any, seen: Arrays) -> Arrays:
    """What the eyes gave for the tiles, empty slots left out: `vision`, `projector`, `image_features`."""
    used = slots.used(prompt["image_slots"], images["mask"].shape[1])
    projector = seen["projector"][used]
    return {"vision": seen["vision_states"][used], "projector": projector,
            "image_features": projector.reshape(-1, projector.shape[-1])}


def _patches(mask: np.ndarray, size: int) -> np.ndarray:
    """bool [b, tiles, rows, columns] of pixels [b, tiles, h, w]; those that fill no patch are dropped."""
    b, tiles, rows, columns = (*mask.shape[:2], *(side // size for side in mask.shape[2:]))
    mask = mask[:, :, : rows * size, : columns * size]
    return mask.reshape(b, tiles, rows, size, columns, size).any(axis=(3, 5))
