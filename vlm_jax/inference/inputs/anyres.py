"""Images as a whole and in tiles of a larger copy, their padding left out and a newline after each row: LLaVA-NeXT and
LLaVA-OneVision. Which tokens a row shows is an index, computed here; the model never sees a size."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

import numpy as np

from vlm_jax.inference.inputs import slots
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens.anyres import NEWLINE, AnyRes, Gather

NAMES = ("pixel_values", "image_sizes", "batch_num_images")
Arrays = dict[str, np.ndarray]


class Image(NamedTuple):
    """tiles: float32 [n, 3, h, w], the whole image first; gather: which of their tokens are shown."""

    tiles: np.ndarray
    gather: Gather


def arrange(config: ModelConfig, inputs: Mapping[str, np.ndarray], is_image: np.ndarray) -> tuple[Arrays, Any]:
    """({image_index [b, t], or [b, t, 4] with image_weight; image_slots [b]}, tiles [b, slots, h, w, 3]).

    In, images in reading order: `pixel_values` [n, tiles, 3, h, w], padded to the most tiles (or all tiles joined, [tiles,
    3, h, w]); `image_sizes` [n, 2], height and width of the originals; perhaps `batch_num_images` of each row that has
    images: where a prompt has several, they are not tiled. `image_slots` says how many slots of a row are used; the
    others are black, and no token shows them.
    """
    images = _images(config.layout, inputs)
    rows = _dealt(images, is_image.sum(axis=1))
    none = np.zeros((0, *images[0].tiles.shape[1:]), np.float32)
    tiles = [np.concatenate([none, *(image.tiles for image in row)]).transpose(0, 2, 3, 1) for row in rows]
    pixels, each, k = slots.dealt(tiles), config.layout.side**2, images[0].gather.index.shape[1]
    index, weight = np.full((*is_image.shape, k), -1), np.zeros((*is_image.shape, k), np.float32)
    for b, row in enumerate(rows):
        first = np.cumsum([0, *(len(image.tiles) for image in row)]) * each
        for image, start, where in zip(row, first, _places(row, is_image[b])):
            index[b, where] = np.where(image.gather.index == NEWLINE, pixels.shape[1] * each, start + image.gather.index)
            weight[b, where] = image.gather.weight
    fields = {"image_index": index, "image_weight": weight} if k > 1 else {"image_index": index[..., 0]}
    return {**fields, "image_slots": np.array([len(row) for row in tiles])}, pixels


def shown(config: ModelConfig, prompt: Arrays, images: np.ndarray, seen: Arrays) -> Arrays:
    """What the eyes gave for the tiles, empty slots left out, and what the decoder reads of it: `vision`, `projector`,
    `image_features`."""
    used, index = slots.used(prompt["image_slots"], images.shape[1]), prompt["image_index"]
    is_image = (index if index.ndim == 2 else index[..., 0]) >= 0
    return {"vision": seen["vision_states"][used], "projector": seen["projector"][used],
            "image_features": seen["embedded"][is_image]}


def _dealt(images: list[Image], tokens: np.ndarray) -> list[list[Image]]:
    """The images of each row, whose image tokens they fill; raises ValueError where they do not."""
    left, rows = list(images), []
    for b, count in enumerate(tokens.tolist()):
        row = []
        while left and sum(len(image.gather.index) for image in row) < count:
            row.append(left.pop(0))
        rows.append(row)
        if (given := sum(len(image.gather.index) for image in row)) != count:
            raise ValueError(f"Row {b} has {count} image tokens; its images take {given} by their image_sizes.")
    if left:
        raise ValueError(f"There are {len(images)} images, {len(left)} more than input_ids have places for.")
    return rows


def _places(row: list[Image], is_image: np.ndarray) -> list[np.ndarray]:
    """Where in the row the tokens of each of its images stand."""
    return np.split(np.flatnonzero(is_image), np.cumsum([len(image.gather.index) for image in row])[:-1])


def _images(layout: AnyRes, inputs: Mapping[str, np.ndarray]) -> list[Image]:
    """The images one by one, after a look at whether the inputs fit each other."""
    if "image_sizes" not in inputs:
        raise ValueError("image_sizes are missing; give [images, 2], height and width of each image before resizing.")
    sizes, pixels = np.asarray(inputs["image_sizes"]), np.asarray(inputs["pixel_values"], np.float32)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or not len(sizes) or (sizes < 1).any():
        raise ValueError(f"image_sizes are {sizes.shape}; give [images, 2], height and width in pixels.")
    counts = np.asarray(inputs.get("batch_num_images", np.ones(len(sizes), int)))
    if counts.sum() != len(sizes):  # rows without images may have no count
        raise ValueError(f"batch_num_images are {counts.tolist()} for {len(sizes)} images.")
    tiled = np.repeat(counts == 1, counts)
    needed = [layout.tiles(w, h) if whole else 1 for (h, w), whole in zip(sizes.tolist(), tiled)]
    if pixels.ndim == 4 and len(pixels) == sum(needed):
        tiles = np.split(pixels, np.cumsum(needed)[:-1])
    elif pixels.ndim == 5 and len(pixels) == len(sizes) and pixels.shape[1] >= max(needed, default=0):
        tiles = [image[:n] for image, n in zip(pixels, needed)]
    else:
        raise ValueError(f"pixel_values are {pixels.shape}; the {len(sizes)} images have {needed} tiles, so give "
                         f"[{len(sizes)}, {max(needed, default=0)}, 3, height, width].")
    return [Image(t, layout.gather(w, h, bool(whole))) for t, (h, w), whole in zip(tiles, sizes.tolist(), tiled)]
