"""What makes visual features fewer, between the encoder and the connector. A new reducer is a function and a line in
REDUCERS.

A reducer takes the features of a full square grid, row by row, and a factor n, and gives those of a grid with n times
fewer rows and columns, also row by row: V becomes V / n^2 (`tokens.num_visual_tokens` counts them).
"""

from __future__ import annotations

import math
from typing import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.models.vit import Features


def cells(x: Float[Array, "b v f"], factor: int) -> Float[Array, "b r c n n f"]:
    """Features cut into cells of n x n, the third and fourth axis row and column inside a cell.

    Rows and columns that fill no cell are dropped. Raises ValueError for a grid that is not square or too small.
    """
    b, v, f = x.shape
    side, kept = math.isqrt(v), math.isqrt(v) // factor
    if side * side != v or not kept:
        raise ValueError(f"{v} features cannot be reduced by {factor}; a reducer takes a square grid of at least "
                         f"{factor} rows.")
    x = x.reshape(b, side, side, f)[:, : kept * factor, : kept * factor]
    return x.reshape(b, kept, factor, kept, factor, f).swapaxes(2, 3)


def average(x: Float[Array, "b v f"], factor: int) -> Float[Array, "b w f"]:
    """The mean of each cell (Gemma 3, arXiv 2503.19786: 4096 patches become 256)."""
    x = cells(x, factor).mean(axis=(3, 4))
    return x.reshape(x.shape[0], -1, x.shape[-1])


def pixel_shuffle(x: Float[Array, "b v f"], factor: int) -> Float[Array, "b w nnf"]:
    """The features of each cell side by side, row by row (InternVL, arXiv 2404.16821; Idefics3, arXiv 2408.12637)."""
    b, rows, columns, n, _, f = (x := cells(x, factor)).shape
    return x.reshape(b, rows * columns, n * n * f)


REDUCERS: dict[str, Callable[[Array, int], Array]] = {"average": average, "pixel_shuffle": pixel_shuffle}


def reduce(kind: str | None, factor: int, features: Features) -> Features:
    """The features that are left, placed in their own smaller grid; a cell is real where any of its patches is."""
    if kind is None:
        return features
    x = REDUCERS[kind](features.features, factor)
    rows = jnp.arange(math.isqrt(x.shape[1]))
    grid = jnp.stack(jnp.meshgrid(rows, rows, indexing="ij"), axis=-1).reshape(-1, 2)
    mask = cells(features.mask[..., None], factor).any(axis=(3, 4, 5)).reshape(x.shape[:2])
    return Features(x, jnp.broadcast_to(grid, (x.shape[0], *grid.shape)), mask)
