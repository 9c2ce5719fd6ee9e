"""f_v for images of any size: a Vision Transformer over packed patches with 2-D rotary positions (Qwen2-VL, arXiv
2409.12191), most of whose layers may see no further than a window (Qwen2.5-VL, arXiv 2502.13923)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.execution import as_computed
from vlm_jax.models.layers import Linear, Norm
from vlm_jax.models.mask import PADDING, SequenceInfo, describe
from vlm_jax.models.transformer import TransformerConfig, apply_blocks, declare_blocks
from vlm_jax.models.vit import Features, VisionOutput


@dataclasses.dataclass(frozen=True)
class NativeViTConfig:
    """`temporal_patch_size` frames are one patch: an image stands there so many times. `merge` x `merge` neighbouring
    patches follow each other, and their features are handed on joined. `window` is the side of a window in patches,
    None for none; the layers in `full_layers` see a whole frame all the same. The transformer's two rotary axes are row
    and column."""

    kind: ClassVar[str] = "native"

    patch_size: int
    temporal_patch_size: int
    merge: int
    transformer: TransformerConfig
    window: int | None = None
    full_layers: tuple[int, ...] = ()

    @property
    def patch_values(self) -> int:
        """Numbers in a flattened patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def blank(self, n: int = 1) -> dict[str, Array]:
        """n canvases with the patches of one visual token each, as the encoder takes them."""
        patches = self.merge**2
        return {"patches": jnp.zeros((n, patches, self.patch_values)),
                "positions": jnp.zeros((n, patches, 2), jnp.int32), "frames": jnp.zeros((n, patches), jnp.int32)}


class NativeViT(nn.Module):
    """Takes canvases of patches, packed one image after the other.

    patches: [b, N, 3 * T * P * P], in the order channel, frame, row, column; already normalised.
    positions: int32 [b, N, 2], row and column of a patch in its frame.
    frames: int32 [b, N], which frame of the canvas it is of; -1 for padding.
    """

    config: NativeViTConfig

    def setup(self):
        t = self.config.transformer
        self.patch_embed = Linear(t.width, use_bias=False)
        self.blocks = declare_blocks(self, t)
        self.norm_post = Norm(t.norm, t.norm_eps)

    def __call__(self, images: dict[str, Array]) -> VisionOutput:
        """`pooled` is the mean over a canvas; the patch embeddings are sown as `patch_states`."""
        x = self.patch_embed(as_computed(images["patches"]))
        self.sow("intermediates", "patch_states", x)
        infos = self.descriptions(images["positions"], images["frames"])
        last = self.norm_post(apply_blocks(self.config.transformer, self.blocks, x, infos)[0][-1])
        real = images["frames"] != PADDING
        pooled = jnp.where(real[..., None], last, 0).sum(1) / jnp.maximum(real.sum(1, keepdims=True), 1)
        return VisionOutput(pooled.astype(last.dtype), self.joined(last, images["positions"], real), last)

    def joined(self, x: Float[Array, "b n f"], positions: Int[Array, "b n 2"], real: Bool[Array, "b n"]) -> Features:
        """The patches of each visual token as one feature vector, placed in the grid of tokens."""
        merge = self.config.merge
        x = x.reshape(x.shape[0], x.shape[1] // merge**2, merge**2 * x.shape[2])
        return Features(x, positions[:, :: merge**2] // merge, real[:, :: merge**2])

    def descriptions(
        self, positions: Int[Array, "b n 2"], frames: Int[Array, "b n"]
    ) -> SequenceInfo | tuple[SequenceInfo, ...]:
        """What each layer sees: a frame, or of its frame the window that a patch lies in.

        Windows tile a frame from its upper left corner; those at the other edges are what is left.
        """
        c = self.config
        whole = describe(frames, mask_ar=0, axes=positions)
        if c.window is None:
            return whole
        row, column = (positions[..., axis] // c.window for axis in (0, 1))
        branch = 1 + row * frames.shape[1] + column  # a frame has fewer columns than the canvas has patches
        windowed = whole.replace(subsegment_ids=branch)
        return tuple(whole if i in c.full_layers else windowed for i in range(c.transformer.layers))
