"""AnyRes, of LLaVA-NeXT (2024) and LLaVA-OneVision (arXiv 2408.03326): the whole image and tiles of a larger copy.

The copy keeps its aspect ratio and lies in the middle of one of a list of canvases; tokens of the canvas that show
nothing of the image are left out, and a learned newline token ends each row of the others.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple

import numpy as np

from vlm_jax.models.tokens.layout import Layout

NEWLINE = -1  # the newline's place in `Gather.index`


class Gather(NamedTuple):
    """Token i of an image is the sum over k of weight[i, k] * pool[index[i, k]].

    index: int32 [count, k]. The pool holds the tokens of the image's tiles, row by row, the whole image first: token
    (r, c) of tile t is t * side**2 + r * side + c; NEWLINE is the newline token, wherever the model keeps it.
    weight: float32 [count, k]. k is 1 (weights are 1), or 4 with `max_tiles`: bilinear neighbours where it shrinks.
    """

    index: np.ndarray
    weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class AnyRes(Layout):
    """tile: pixels a side of a tile. side: tokens a side of it. pinpoints: the canvases, (height, width) in pixels.

    max_tiles: an image that would have more tokens than 1.21 times this many tiles is shrunk bilinearly to about this
    many (OneVision's `anyres_max_9`); None never shrinks.

    | 640 x 480 pixels | tiles (rows, columns) | tokens shown (height, width) | count |
    |---|---|---|---|
    | NeXT: tile 336, side 24 | 2, 2 | 36, 48 | 576 + 36 * (48 + 1) = 2340 |
    | OneVision: tile 384, side 27, max_tiles 9 | 2, 2 | 40, 54 | 729 + 40 * (54 + 1) = 2929 |
    """

    kind: ClassVar[str] = "anyres"
    newline: ClassVar[bool] = True
    tile: int
    side: int
    pinpoints: tuple[tuple[int, int], ...]
    max_tiles: int | None = None

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of tiles, without that of the whole image."""
        rows, columns = (math.ceil(n / self.tile) for n in best_canvas(self.pinpoints, width, height))
        return rows, columns

    def tiles(self, width: int, height: int) -> int:
        """Tiles that the encoder sees, that of the whole image first."""
        rows, columns = self.grid(width, height)
        return 1 + rows * columns

    def shown(self, width: int, height: int) -> tuple[slice, slice]:
        """(rows, columns) of the canvas' tokens that show something of the image, before any shrinking.

        Raises ValueError where the tiles at the edges are no whole ones.
        """
        if any(n % self.tile for n in best_canvas(self.pinpoints, width, height)):
            raise ValueError(f"AnyRes pinpoints must be multiples of the tile, {self.tile} pixels, not "
                             f"{self.pinpoints!r}.")
        rows, columns = (n * self.side for n in self.grid(width, height))
        # Floats as in the reference, rounded to 7 digits before they are cut: 23.99999999 is 24.
        if width / height > columns / rows:
            margin = (rows - int(round(height * (columns / width), 7))) // 2
            return slice(margin, rows - margin), slice(0, columns)
        margin = (columns - int(round(width * (rows / height), 7))) // 2
        return slice(0, rows), slice(margin, columns - margin)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of tokens after shrinking, without newlines and without those of the whole image."""
        shown = self.shown(width, height)
        rows, columns = (part.stop - part.start for part in shown)
        if self.max_tiles is None:
            return rows, columns
        ratio = math.sqrt(rows * columns / (self.max_tiles * self.side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def count(self, width: int, height: int, tiled: bool = True) -> int:
        """Not `tiled`, as OneVision's images of one prompt where there are several: the whole image and a newline."""
        if not tiled:
            return self.side**2 + 1
        rows, columns = self.size(width, height)
        return self.side**2 + rows * (columns + 1)

    def gather(self, width: int, height: int, tiled: bool = True) -> Gather:
        """The tokens in the order of the decoder's row: whole image, then row after row with its newline."""
        k = 1 if self.max_tiles is None else 4
        whole, end = _alone(np.arange(self.side**2), k), _alone(np.array([NEWLINE]), k)
        if not tiled:
            return _joined([whole, end], axis=0)
        pool, (rows, columns) = self._canvas(width, height)[self.shown(width, height)], self.size(width, height)
        shown = _alone(pool, k) if pool.shape == (rows, columns) else _shrunk(pool, rows, columns)
        lines = _joined([shown, _alone(np.full((rows, 1), NEWLINE), k)], axis=1)
        return _joined([whole, Gather(*(array.reshape(-1, k) for array in lines))], axis=0)

    def _canvas(self, width: int, height: int) -> np.ndarray:
        """[rows, columns] of the canvas' tokens: the place of each in the pool."""
        rows, columns = self.grid(width, height)
        pool = self.side**2 + np.arange(rows * columns * self.side**2)
        tiles = pool.reshape(rows, columns, self.side, self.side)
        return tiles.transpose(0, 2, 1, 3).reshape(rows * self.side, columns * self.side)


def best_canvas(pinpoints: tuple[tuple[int, int], ...], width: int, height: int) -> tuple[int, int]:
    """The (height, width) that keeps most pixels of the image; of several, the smallest; of those, the first."""
    def key(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]
    return max(pinpoints, key=key)


def fitted(canvas: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """(height, width) in pixels of the image scaled to touch the canvas; the other side is rounded up."""
    across, down = canvas[1] / width, canvas[0] / height
    if across < down:
        return min(math.ceil(height * across), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(width * down), canvas[1])


def _alone(index: np.ndarray, k: int) -> Gather:
    """Each token by itself, in the form of a weighted sum of `k`."""
    weight = np.zeros((*index.shape, k), np.float32)
    weight[..., 0] = 1
    return Gather(np.repeat(index[..., None], k, axis=-1).astype(np.int32), weight)


def _joined(parts: list[Gather], axis: int) -> Gather:
    return Gather(*(np.concatenate(arrays, axis) for arrays in zip(*parts)))


def _shrunk(pool: np.ndarray, rows: int, columns: int) -> Gather:
    """Bilinear without antialias, pixel centres at half-integers: four neighbours of each new token."""
    down, across = _between(pool.shape[0], rows), _between(pool.shape[1], columns)
    corners = [(v, h) for v in down for h in across]
    return Gather(np.stack([pool[np.ix_(v[0], h[0])] for v, h in corners], axis=-1).astype(np.int32),
                  np.stack([np.outer(v[1], h[1]) for v, h in corners], axis=-1))


def _between(old: int, new: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(lower neighbours, their shares), (upper neighbours, theirs)] of `new` points along `old` ones.

    In float32 as PyTorch computes them, product and sum rounded once: 192 tokens away float64 is 2e-5 off.
    """
    scale = np.float64(np.float32(old) / np.float32(new))
    at = np.maximum(scale * (np.arange(new) + 0.5) - 0.5, 0).astype(np.float32)
    low = np.minimum(at.astype(np.int32), old - 1)
    share = at - low.astype(np.float32)
    return [(low, 1 - share), (np.minimum(low + 1, old - 1), share)]
