"""f_v: the Vision Transformer (arXiv 2010.11929), with the options of CLIP's image tower (arXiv 2103.00020) and of
SigLIP's (arXiv 2303.15343)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.layers import Linear, Norm
from vlm_jax.models.pooling import AttentionPool
from vlm_jax.models.tokens import patch_grid
from vlm_jax.models.transformer import TransformerConfig, apply_blocks, declare_blocks


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """`feature_layer` counts hidden states as Hugging Face does: 0 is the input of the first block, -1 the output of
    the last, -2 the layer before it (LLaVA); the features of several layers are joined. Features begin with token
    `feature_start`: None is the first patch, 0 the class token where there is one. `pool` is "cls" (a class token), "mean" (over the patches) or "map" (a
    learned query attends to the patches). `drop_remainder` takes patches that do not tile the image, as a valid
    convolution does: SigLIP So400m cuts 384 pixels into 27 patches of 14, and never sees the last 6."""

    image_size: int
    patch_size: int
    transformer: TransformerConfig
    pool: str = "cls"
    pre_norm: bool = True
    patch_bias: bool = False
    feature_layer: int | tuple[int, ...] = -2
    feature_start: int | None = None
    drop_remainder: bool = False

    def __post_init__(self):
        patch_grid(self.image_size, self.patch_size, self.drop_remainder)
        if self.pool not in ("cls", "mean", "map"):
            raise ValueError(f"pool '{self.pool}' is unknown; choose 'cls', 'mean' or 'map'.")
        layers = self.transformer.layers
        for layer in self.feature_layers:
            if not -layers - 1 <= layer <= layers:
                raise ValueError(f"feature_layer {layer} does not exist in a tower of {layers} layers.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(self.image_size, self.patch_size, self.drop_remainder)

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return 1 if self.pool == "cls" else 0

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self.feature_layer if isinstance(self.feature_layer, tuple) else (self.feature_layer,)

    @property
    def extra_features(self) -> int:
        """How many more tokens than patches are handed on: 1 with the class token, -1 without the first patch."""
        return 0 if self.feature_start is None else self.prefix - self.feature_start

    def blank(self, n: int = 1) -> Float[Array, "n h w 3"]:
        """n empty images, as the encoder takes them."""
        return jnp.zeros((n, self.image_size, self.image_size, 3))


@struct.dataclass
class Features:
    """What the eyes hand on: the contract between an encoder and everything after it.

    features: [b, V, F] float; positions: [b, V, 2] int32, row and column in the patch grid (-1, -1 for a class token);
    mask: [b, V] bool, real.
    """

    features: Float[Array, "b v f"]
    positions: Int[Array, "b v 2"]
    mask: Bool[Array, "b v"]


@struct.dataclass
class VisionOutput:
    """pooled: one vector an image [b, F], after the final norm; patches: the features of the chosen layer; last: every
    token's last state [b, n, F], with a class token before the final norm (CLIP), else after it (SigLIP)."""

    pooled: Float[Array, "b f"]
    patches: Features
    last: Float[Array, "b n f"]


def patchify(images: Float[Array, "b h w c"], patch: int) -> Float[Array, "b n ppc"]:
    """Cuts images into patches, row by row; channels vary fastest inside a patch (the order of an HWIO kernel).

    A reshape and a matmul equal the strided convolution and are faster on CPU, most of all backwards. Pixels that fill no
    patch are dropped.
    """
    b, h, w, c = images.shape
    rows, columns = h // patch, w // patch
    x = images[:, : rows * patch, : columns * patch].reshape(b, rows, patch, columns, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, patch * patch * c)


class ViT(nn.Module):
    config: ViTConfig

    def setup(self):
        c, t = self.config, self.config.transformer
        rows, columns = c.grid
        table = nn.initializers.normal(t.width**-0.5)
        self.patch_embed = Linear(t.width, use_bias=c.patch_bias)
        if c.pool == "cls":
            self.class_token = self.param("class_token", table, (t.width,))
        self.position_embedding = self.param("position_embedding", table, (rows * columns + self.prefix, t.width))
        if c.pre_norm:
            self.norm_pre = Norm(t.norm, t.norm_eps)
        self.blocks = declare_blocks(self, t)
        self.norm_post = Norm(t.norm, t.norm_eps)
        if c.pool == "map":
            self.head = AttentionPool(t)

    @property
    def prefix(self) -> int:
        return self.config.prefix

    def __call__(self, images: Float[Array, "b h w 3"]) -> VisionOutput:
        """Encodes images of image_size x image_size pixels, already normalised by the model's preprocessing."""
        states = self.states(images)
        last = states[-1] if self.prefix else self.norm_post(states[-1])
        features = jnp.concatenate([states[layer] for layer in self.config.feature_layers], axis=-1)
        return VisionOutput(self.pool(states[-1]), self._features(features), last)

    def states(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b n w"]]:
        """[input of the first block, its output, ..., the last block's], with the class token where there is one."""
        c = self.config
        if images.shape[1:3] != (c.image_size, c.image_size):
            raise ValueError(f"Images are {images.shape[1]}x{images.shape[2]}, the encoder takes "
                             f"{c.image_size}x{c.image_size}; run them through the model's image processor.")
        return apply_blocks(c.transformer, self.blocks, self.embed(images))[0]

    def pool(self, x: Float[Array, "b n w"]) -> Float[Array, "b w"]:
        """One vector an image, of the last block's output."""
        if self.config.pool == "cls":
            return self.norm_post(x[:, 0])
        x = self.norm_post(x)
        return self.head(x) if self.config.pool == "map" else x.mean(axis=1)

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n w"]:
        """Patches (and the class token) as the first block sees them."""
        x = self.patch_embed(patchify(images, self.config.patch_size))
        if self.prefix:
            cls = jnp.broadcast_to(self.class_token, (x.shape[0], 1, x.shape[-1])).astype(x.dtype)
            x = jnp.concatenate([cls, x], axis=1)
        x = x + self.position_embedding.astype(x.dtype)
        return self.norm_pre(x) if self.config.pre_norm else x

    def _features(self, x: Float[Array, "b n f"]) -> Features:
        """What is handed on of all tokens, the class token first where there is one."""
        rows, columns = self.config.grid
        start = self.prefix if self.config.feature_start is None else self.config.feature_start
        grid = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
        grid = jnp.pad(grid, ((self.prefix, 0), (0, 0)), constant_values=-1)[start:]
        x = x[:, start:]
        return Features(x, jnp.broadcast_to(grid, (x.shape[0], *grid.shape)), jnp.ones(x.shape[:2], bool))
