"""f_v for images of any size and shape: SigLIP 2's NaFlex (arXiv 2502.14786), rows of patches with a mask."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, TypedDict

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models import positions, tokens
from vlm_jax.models.execution import as_computed
from vlm_jax.models.layers import Linear, Norm
from vlm_jax.models.mask import PADDING, describe
from vlm_jax.models.pooling import AttentionPool
from vlm_jax.models.transformer import TransformerConfig, apply_blocks, declare_blocks
from vlm_jax.models.vit import Features, VisionOutput

RESIZE = "bilinear_antialias"


@dataclasses.dataclass(frozen=True)
class NaFlexConfig:
    """`num_patches` are the places of the square table of position embeddings, which is resized to the grid of each
    image; `pool` is "map" (a learned query attends to the patches) or "mean"; `feature_layer` as in `vit.ViTConfig`."""

    kind: ClassVar[str] = "naflex"
    num_patches: int
    patch_size: int
    transformer: TransformerConfig
    pool: str = "map"
    feature_layer: int = -1

    def __post_init__(self):
        if self.side**2 != self.num_patches:
            raise ValueError(f"num_patches {self.num_patches} is no square; use {self.side**2} or "
                             f"{(self.side + 1)**2}.")
        if self.pool not in ("map", "mean"):
            raise ValueError(f"pool '{self.pool}' is unknown; choose 'map' or 'mean'.")

    @property
    def side(self) -> int:
        """Rows, and columns, of the table of position embeddings."""
        return math.isqrt(self.num_patches)

    @property
    def layout(self) -> tokens.NaFlex:
        """Where no processor says otherwise, an image has at most as many patches as there are positions."""
        return tokens.NaFlex(self.patch_size, self.num_patches)

    def blank(self, n: int = 1) -> PatchRows:
        """n empty images, as the encoder takes them."""
        return {"patches": jnp.zeros((n, self.num_patches, self.patch_size**2 * 3)),
                "shapes": jnp.full((n, 2), self.side), "mask": jnp.ones((n, self.num_patches), bool)}


class PatchRows(TypedDict):
    """patches: as `vit.patchify` cuts them, padded to the longest row; shapes: rows and columns of each image's grid;
    mask: which patches are real."""

    patches: Float[Array, "b n ppc"]
    shapes: Int[Array, "b 2"]
    mask: Bool[Array, "b n"]


class NaFlex(nn.Module):
    config: NaFlexConfig

    def setup(self):
        c, t = self.config, self.config.transformer
        self.patch_embed = Linear(t.width)
        table = nn.initializers.normal(t.width**-0.5)
        self.position_embedding = self.param("position_embedding", table, (c.num_patches, t.width))
        self.blocks = declare_blocks(self, t)
        self.norm_post = Norm(t.norm, t.norm_eps)
        if c.pool == "map":
            self.head = AttentionPool(t)

    def __call__(self, images: PatchRows) -> VisionOutput:
        return self.output(self.states(images), images)

    def states(self, images: PatchRows) -> list[Float[Array, "b n w"]]:
        """[input of the first block, its output, ..., the last block's]; padding is seen by none."""
        row, column = self._places(images)
        x = self.patch_embed(as_computed(images["patches"]))
        x = x + self.positions(row, column, images["shapes"]).astype(x.dtype)
        info = describe(jnp.zeros(x.shape[:2]), mask_ar=0)
        kv_info = describe(jnp.where(images["mask"], 0, PADDING), mask_ar=0)
        return apply_blocks(self.config.transformer, self.blocks, x, info, kv_info)[0]

    def output(self, states: list[Float[Array, "b n w"]], images: PatchRows) -> VisionOutput:
        """What the encoder hands on, of its states; `last` is after the final norm, and zero at padding."""
        c, mask = self.config, images["mask"]
        last = jnp.where(mask[..., None], self.normed(states[-1]), 0)
        if c.pool == "map":
            pooled = self.head(last, mask)
        else:
            pooled = last.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        place = jnp.stack(self._places(images), axis=-1)
        return VisionOutput(pooled, Features(states[c.feature_layer], place, mask), last)

    def normed(self, x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
        """The final norm."""
        return self.norm_post(x)

    def positions(
        self, row: Int[Array, "b n"], column: Int[Array, "b n"], shapes: Int[Array, "b 2"]
    ) -> Float[Array, "b n w"]:
        """Position embeddings, the table resized to each image's own grid."""
        side = self.config.side
        down = positions.weights(row, shapes[:, :1], side, RESIZE)
        across = positions.weights(column, shapes[:, 1:], side, RESIZE)
        both = (down[..., :, None] * across[..., None, :]).reshape(*row.shape, side * side)
        return jnp.matmul(both, self.position_embedding.astype(jnp.float32), precision=lax.Precision.HIGHEST)

    def _places(self, images: PatchRows) -> tuple[Int[Array, "b n"], Int[Array, "b n"]]:
        """Row and column of each patch; what lies beyond an image's grid takes the place of its first patch."""
        height, width = images["shapes"][:, :1], jnp.maximum(images["shapes"][:, 1:], 1)
        index = jnp.arange(images["patches"].shape[1])[None]
        index = jnp.where(index < height * width, index, 0)
        return index // width, index % width
