"""Learned position embeddings of a grid of patches, resized to grids of other sizes as torch's `interpolate` does."""

from __future__ import annotations

import dataclasses
from typing import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int


def _cubic(a: float) -> Callable[[Array], Array]:
    """Keys' cubic convolution kernel, zero from 2 on (IEEE ASSP 29(6), 1981, equation 4 with his -1/2 as `a`)."""

    def kernel(x):
        x = jnp.abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))

    return kernel


@dataclasses.dataclass(frozen=True)
class Resize:
    """A kernel over distances in rows of the table. With `antialias` it is widened where the grid gets smaller, and
    what would lie beyond the edge is left out; without, a point takes its four neighbours, the edge repeated."""

    kernel: Callable[[Array], Array]
    antialias: bool


RESIZE = {
    "bicubic": Resize(_cubic(-0.75), antialias=False),
    "bicubic_antialias": Resize(_cubic(-0.5), antialias=True),
    "bilinear_antialias": Resize(lambda x: jnp.maximum(1 - jnp.abs(x), 0), antialias=True),
}


def checked(method: str) -> str:
    """The name of a method; raises ValueError for one that is unknown."""
    if method not in RESIZE:
        raise ValueError(f"Resizing '{method}' is unknown; choose one of {', '.join(RESIZE)}.")
    return method


def weights(
    index: Int[Array, "*n"], size: Int[Array, "*n"] | int, source: int, method: str
) -> Float[Array, "*n source"]:
    """How much each of the `source` rows of a table counts for row `index` of the `size` rows it is resized to.

    `index` and `size` may be traced: images of one batch may have grids of their own.
    """
    resize = RESIZE[checked(method)]
    step = source / jnp.asarray(size, jnp.float32)
    centre = ((jnp.asarray(index) + 0.5) * step - 0.5)[..., None]
    if resize.antialias:
        w = resize.kernel((jnp.arange(source) - centre) / jnp.maximum(step, 1)[..., None])
        return w / w.sum(-1, keepdims=True)
    taps = jnp.floor(centre) + jnp.arange(-1, 3)
    rows = jnp.clip(taps, 0, source - 1)
    return (resize.kernel(taps - centre)[..., None] * (rows[..., None] == jnp.arange(source))).sum(-2)


def resized(table: Float[Array, "h w d"], rows: int, columns: int, method: str) -> Float[Array, "rows columns d"]:
    """The table of a grid of `rows` x `columns` patches; a grid of its own size is returned as it is."""
    height, width, _ = table.shape
    if (rows, columns) == (height, width):
        return table
    down = weights(np.arange(rows), rows, height, method)
    across = weights(np.arange(columns), columns, width, method)
    out = jnp.einsum("ri,cj,ijd->rcd", down, across, table.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    return out.astype(table.dtype)
