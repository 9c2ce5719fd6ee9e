"""f_v for tiles of which a part may be padding: Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.mask import PADDING, describe
from vlm_jax.models.transformer import apply_blocks
from vlm_jax.models.vit import Features, ViT, ViTConfig, patchify


class Tiles(TypedDict):
    """pixels: squares of any one size, real content at the top left. mask: which patches hold some of it."""

    pixels: Float[Array, "b h w 3"]
    mask: Bool[Array, "b r c"]


@dataclasses.dataclass(frozen=True)
class MaskedViTConfig(ViTConfig):
    """A ViT without class token whose patches see real patches alone. A patch takes the position embedding that lies as
    far down and across the table as the patch does in the real part of its image."""

    kind: ClassVar[str] = "masked"

    def blank(self, n: int = 1) -> Tiles:
        return {"pixels": super().blank(n), "mask": jnp.ones((n, *self.grid), bool)}


class MaskedViT(ViT):
    """`last` and the features hold padding too, whose values mean nothing; the features' mask tells."""

    config: MaskedViTConfig

    def states(self, images: Tiles) -> list[Float[Array, "b n w"]]:
        """[input of the first block, its output, ..., the last block's]."""
        mask = images["mask"].reshape(len(images["mask"]), -1)
        x = self.patch_embed(patchify(images["pixels"], self.config.patch_size))
        x = x + self.position_embedding[self._places(images["mask"])].astype(x.dtype)
        kv_info = describe(jnp.where(mask, 0, PADDING), mask_ar=0)
        return apply_blocks(self.config.transformer, self.blocks, x, describe(jnp.zeros_like(mask), mask_ar=0), kv_info)[0]

    def _places(self, mask: Bool[Array, "b r c"]) -> Int[Array, "b n"]:
        """Rows of the position table; padding takes the first."""
        side, (rows, columns) = self.config.grid[0], mask.shape[1:]
        down = jnp.asarray(buckets(rows, side))[mask[:, :, 0].sum(axis=1)]
        across = jnp.asarray(buckets(columns, side))[mask[:, 0, :].sum(axis=1)]
        return jnp.where(mask, down[:, :, None] * side + across[:, None, :], 0).reshape(len(mask), -1)

    def _features(self, x: Float[Array, "b n f"], images: Tiles) -> Features:
        features = super()._features(x, images["pixels"])
        return features.replace(mask=images["mask"].reshape(features.mask.shape))


def buckets(length: int, side: int) -> np.ndarray:
    """int32 [length + 1, length]: in row n, where the k-th of n patches stands in a table of `side`, i such that i / side
    <= k / n < (i + 1) / side. At equality float32 rounding decides, so all is computed as torch's `arange` and `bucketize`
    do it, which these models were trained with: off by one in places at 19, 25 or 31 patches a side, say.
    """
    fractions = np.zeros((length + 1, length), np.float32)
    for n in range(1, length + 1):
        fractions[n] = np.arange(length, dtype=np.float32) * (np.float32(1) / np.float32(n))
    fractions = np.minimum(fractions, np.float32(1 - 1e-6))
    return np.searchsorted(_boundaries(side), fractions, side="right").astype(np.int32)


def _boundaries(side: int) -> np.ndarray:
    """arange(1 / side, 1, 1 / side) as torch computes it on a CPU: in float64, but from the float32 value of every eighth
    one, as far as 16 fit."""
    step = 1 / side
    values = step + step * np.arange(int(np.ceil((1 - step) / step)))
    whole = len(values) // 16 * 16
    bases = values[:whole:8].astype(np.float32).astype(np.float64)
    values[:whole] = (bases[:, None] + step * np.arange(8)).ravel()
    return values.astype(np.float32)
