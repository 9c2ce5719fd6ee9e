"""Images at their own resolution, as flattened patches beside a grid each: Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

from typing import Any, Iterator, Mapping

import numpy as np

from vlm_jax.inference.inputs.fixed import running_index
from vlm_jax.models.mask import PADDING
from vlm_jax.models.model import ModelConfig

NAMES = ("pixel_values", "image_grid_thw", "mm_token_type_ids")
VIDEO = 2  # in mm_token_type_ids
Arrays = dict[str, np.ndarray]
Grid = tuple[int, int, int]  # frames, rows and columns of patches


def arrange(config: ModelConfig, inputs: Mapping[str, np.ndarray], is_image: np.ndarray) -> tuple[Arrays, Any]:
    """({image_index [b, t], axes [b, t, 3], positions [b, t]}, canvases) of `pixel_values` [patches, values].

    Images stand in reading order, their grids (frames, rows, columns) in `image_grid_thw` [n, 3]; the patches of a
    visual token follow each other. Each row gets one canvas of its images, padded to the longest: see
    `models.native_vit`. Positions go on after an image from the largest of its axes, so that they are what a
    generated token counts from.
    """
    if np.any(np.asarray(inputs.get("mm_token_type_ids", 0)) == VIDEO):
        raise ValueError("mm_token_type_ids mark video tokens; only images are supported.")
    merge, pixels = config.vision.merge, np.asarray(inputs["pixel_values"], np.float32)
    rows = _dealt(_grids(inputs, pixels, config), is_image, merge)
    real = np.asarray(inputs["attention_mask"]) > 0 if "attention_mask" in inputs else np.ones_like(is_image)
    axes = np.zeros((*is_image.shape, 3), np.int32)
    for b, grids in enumerate(rows):
        axes[b, real[b]] = rope_axes(is_image[b, real[b]], grids, merge)
    fields = {"image_index": running_index(is_image), "axes": axes, "positions": axes.max(-1)}
    return fields, _canvases(rows, pixels, merge)


def shown(config: ModelConfig, prompt: Arrays, images: Any, seen: Arrays) -> Arrays:
    """What the eyes gave for the images alone: `patch_embed` [patches, f] and `image_features` [tokens, d]; and of the
    prompt `position_ids` [3, b, t], zero at padding, and `rope_deltas` [b, 1], by how much a row's next position
    exceeds its number of tokens."""
    used = images["frames"][:, 0] != PADDING
    tokens = used[:, :: config.vision.merge**2]
    count = (prompt["segment_ids"] != PADDING).sum(axis=1)
    return {"patch_embed": seen["patch_states"][used], "image_features": seen["projector"][tokens],
            "position_ids": prompt["axes"].transpose(2, 0, 1),
            "rope_deltas": (prompt["axes"].max((1, 2)) + 1 - count)[:, None]}


def rope_axes(is_image: np.ndarray, grids: list[Grid], merge: int) -> np.ndarray:
    """Positions [t, 3] of a row of real tokens on the axes time, row and column (M-RoPE, arXiv 2409.12191, 2.1).

    A text token has one number on all three. An image starts where the text before it ended, counts its visual tokens
    along each axis, and what follows starts after the longer side.
    """
    axes, here, token, grids = np.zeros((len(is_image), 3), np.int32), 0, 0, iter(grids)
    while token < len(is_image):
        size, step = (1, 1, 1), 1
        if is_image[token]:
            frames, rows, columns = next(grids)
            size = (frames, rows // merge, columns // merge)
            step = max(size[1:])
        count = int(np.prod(size))
        axes[token : token + count] = here + np.indices(size).reshape(3, -1).T
        here, token = here + step, token + count
    return axes


def patch_positions(grid: Grid, merge: int) -> np.ndarray:
    """Row and column [patches, 2] of an image's patches in the order they come in: visual token by visual token."""
    frames, rows, columns = grid
    place = np.indices((rows, columns)).transpose(1, 2, 0)
    place = place.reshape(rows // merge, merge, columns // merge, merge, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2)
    return np.tile(place, (frames, 1))


def _grids(inputs: Mapping[str, np.ndarray], pixels: np.ndarray, config: ModelConfig) -> list[Grid]:
    """The grids, after a look at whether they fit the patches and the model."""
    if "image_grid_thw" not in inputs:
        raise ValueError("image_grid_thw is missing; the model's image processor gives it beside pixel_values.")
    grids, merge = np.asarray(inputs["image_grid_thw"]), config.vision.merge
    if grids.ndim != 2 or grids.shape[1] != 3 or (grids < 1).any() or (grids[:, 1:] % merge).any():
        raise ValueError(f"image_grid_thw must be [images, 3]: frames, and rows and columns divisible by {merge}; it "
                         f"is {grids.tolist()}.")
    wanted = (int(grids.prod(axis=1).sum()), config.vision.patch_values)
    if pixels.shape != wanted:
        raise ValueError(f"pixel_values are {pixels.shape}; image_grid_thw {grids.tolist()} asks for {wanted}.")
    return [tuple(int(n) for n in grid) for grid in grids]


def _dealt(grids: list[Grid], is_image: np.ndarray, merge: int) -> list[list[Grid]]:
    """The grids of each row: the next ones in reading order whose tokens are as many as the row has places for."""
    left, rows = list(grids), []
    for b, places in enumerate(is_image.sum(axis=1)):
        row, count = [], 0
        while count < places and left:
            row.append(left.pop(0))
            count += int(np.prod(row[-1])) // merge**2
        if count != places:
            raise ValueError(f"Row {b} has {places} image tokens; its images (frames, rows, columns) {row} take "
                             f"{count}.")
        rows.append(row)
    if left:
        raise ValueError(f"image_grid_thw has {len(left)} images more than input_ids have places for.")
    return rows


def _canvases(rows: list[list[Grid]], pixels: np.ndarray, merge: int) -> Arrays:
    """One canvas a row, each array [b, 1, N, ...]."""
    longest = max(sum(int(np.prod(grid)) for grid in row) for row in rows)
    canvas = {"patches": np.zeros((len(rows), 1, longest, pixels.shape[1]), np.float32),
              "positions": np.zeros((len(rows), 1, longest, 2), np.int32),
              "frames": np.full((len(rows), 1, longest), PADDING, np.int32)}
    taken = 0
    for b, row in enumerate(rows):
        for place, frame, patches in _placed(row):
            canvas["patches"][b, 0, place] = pixels[taken : taken + patches]
            canvas["frames"][b, 0, place] = frame
            taken += patches
        if row:
            positions = np.concatenate([patch_positions(grid, merge) for grid in row])
            canvas["positions"][b, 0, : len(positions)] = positions
    return canvas


def _placed(row: list[Grid]) -> Iterator[tuple[slice, int, int]]:
    """(place on the canvas, number of the frame, patches) of each frame of a row's images."""
    start = frame = 0
    for frames, rows, columns in row:
        for _ in range(frames):
            yield slice(start, start + rows * columns), frame, rows * columns
            start, frame = start + rows * columns, frame + 1
