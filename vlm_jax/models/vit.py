"""f_v: the Vision Transformer (arXiv 2010.11929), with the options of CLIP's image tower (arXiv 2103.00020), SigLIP's
(arXiv 2303.15343), DINOv2 (arXiv 2304.07193) and InternViT (arXiv 2312.14238)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models import positions
from vlm_jax.models.execution import as_computed
from vlm_jax.models.layers import Linear, Norm, activation
from vlm_jax.models.pooling import AttentionPool
from vlm_jax.models.tokens import patch_grid
from vlm_jax.models.transformer import TransformerConfig, apply_blocks, declare_blocks


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes and options of an encoder of square images.

    Tokens: a class token where `class_token` says so (None: where the pool needs one), then `registers` learned ones
    without a position (arXiv 2309.16588), then the patches. `drop_remainder` takes patches that do not tile the image,
    as a valid convolution does: SigLIP So400m cuts 384 pixels into 27 patches of 14, and never sees the last 6.
    `resize` names how position embeddings are resized to images of another size (`positions.RESIZE`); None refuses those.
    `mask_token` keeps the token that stood for hidden patches in a pretraining (DINOv2), which an encoder never uses.
    `final_norm` is over "all" tokens (SigLIP, DINOv2), over the "pooled" ones alone (CLIP), or None (InternViT).
    `pool` is "cls" (the class token), "dense" (the same through a dense layer of `pool_width`, the tower's where None,
    and `pool_activation`), "mean" (over the patches) or "map" (a learned query attends to the patches).
    Features: `feature_layer` counts hidden states as Hugging Face does: 0 is the input of the first block, -1 the
    output of the last, -2 the layer before it (LLaVA); those of several layers are joined. They begin with token
    `feature_start`: None is the first patch, 0 the class token where there is one. `feature_norm` gives them the final
    norm too.
    """

    image_size: int
    patch_size: int
    transformer: TransformerConfig
    pool: str = "cls"
    pre_norm: bool = True
    patch_bias: bool = False
    feature_layer: int | tuple[int, ...] = -2
    feature_start: int | None = None
    drop_remainder: bool = False
    class_token: bool | None = None
    registers: int = 0
    mask_token: bool = False
    resize: str | None = None
    final_norm: str | None = "pooled"
    feature_norm: bool = False
    pool_width: int | None = None
    pool_activation: str = "tanh"

    def __post_init__(self):
        patch_grid(self.image_size, self.patch_size, self.drop_remainder)
        if self.pool not in ("cls", "dense", "mean", "map"):
            raise ValueError(f"pool '{self.pool}' is unknown; choose 'cls', 'dense', 'mean' or 'map'.")
        if self.pool in ("cls", "dense") and self.class_token is False:
            raise ValueError(f"pool '{self.pool}' is that of a class token; set class_token or another pool.")
        if self.final_norm not in ("all", "pooled", None):
            raise ValueError(f"final_norm '{self.final_norm}' is unknown; choose 'all', 'pooled' or None.")
        if self.feature_norm and self.final_norm is None:
            raise ValueError("feature_norm is the final norm over features; set final_norm.")
        if self.resize is not None:
            positions.checked(self.resize)
        layers = self.transformer.layers
        for layer in self.feature_layers:
            if not -layers - 1 <= layer <= layers:
                raise ValueError(f"feature_layer {layer} does not exist in a tower of {layers} layers.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(self.image_size, self.patch_size, self.drop_remainder)

    @property
    def has_class_token(self) -> bool:
        return self.pool in ("cls", "dense") if self.class_token is None else self.class_token

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return self.has_class_token + self.registers

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
    """pooled: one vector an image [b, F]; patches: the features of the chosen layer; last: every token's last state
    [b, n, F], after a final norm over all tokens (SigLIP, DINOv2), else before it (CLIP)."""

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
        if c.has_class_token:
            self.class_token = self.param("class_token", table, (t.width,))
        if c.registers:
            self.registers = self.param("registers", table, (c.registers, t.width))
        if c.mask_token:
            self.param("mask_token", nn.initializers.zeros_init(), (t.width,))
        positioned = rows * columns + c.has_class_token
        self.position_embedding = self.param("position_embedding", table, (positioned, t.width))
        if c.pre_norm:
            self.norm_pre = Norm(t.norm, t.norm_eps)
        self.blocks = declare_blocks(self, t)
        if c.final_norm:
            self.norm_post = Norm(t.norm, t.norm_eps)
        if c.pool == "map":
            self.head = AttentionPool(t)
        elif c.pool == "dense":
            self.head = Linear(c.pool_width or t.width)

    def __call__(self, images: Float[Array, "b h w 3"]) -> VisionOutput:
        """Encodes images already normalised by the model's preprocessing, of image_size x image_size pixels unless the
        config resizes position embeddings; raises ValueError for others."""
        return self.output(self.states(images), images)

    def states(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b n w"]]:
        """[input of the first block, its output, ..., the last block's], of all tokens."""
        c = self.config
        if images.shape[1:3] != (c.image_size, c.image_size) and c.resize is None:
            raise ValueError(f"Images are {images.shape[1]}x{images.shape[2]}, the encoder takes "
                             f"{c.image_size}x{c.image_size}; run them through the model's image processor.")
        return apply_blocks(c.transformer, self.blocks, self.embed(images))[0]

    def output(self, states: list[Float[Array, "b n w"]], images: Float[Array, "b h w 3"]) -> VisionOutput:
        """What the encoder hands on, of its states."""
        c = self.config
        chosen = [states[layer] for layer in c.feature_layers]
        features = jnp.concatenate([self.normed(x) for x in chosen] if c.feature_norm else chosen, axis=-1)
        last = self.normed(states[-1]) if c.final_norm == "all" else states[-1]
        return VisionOutput(self.pool(states[-1]), self._features(features, images), last)

    def normed(self, x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
        """The final norm, where there is one."""
        return self.norm_post(x) if self.config.final_norm else x

    def pool(self, x: Float[Array, "b n w"]) -> Float[Array, "b w"]:
        """One vector an image, of the last block's output."""
        c = self.config
        if c.pool == "cls":
            return self.normed(x[:, 0])
        if c.pool == "dense":
            return activation(c.pool_activation)(self.head(self.normed(x[:, 0])))
        x = self.normed(x[:, c.prefix:])
        return self.head(x) if c.pool == "map" else x.mean(axis=1)

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n w"]:
        """All tokens as the first block sees them."""
        c = self.config
        x = self.patch_embed(as_computed(patchify(images, c.patch_size)))
        front, table = [], self.position_embedding.astype(x.dtype)
        if c.has_class_token:
            front, table = [self.class_token.astype(x.dtype)[None] + table[:1]], table[1:]
        if c.registers:
            front.append(self.registers.astype(x.dtype))
        if c.resize is not None:
            rows, columns = self._grid(images)
            table = positions.resized(table.reshape(*c.grid, -1), rows, columns, c.resize).reshape(rows * columns, -1)
        front = [jnp.broadcast_to(token, (x.shape[0], *token.shape)) for token in front]
        x = jnp.concatenate([*front, x + table], axis=1)
        return self.norm_pre(x) if c.pre_norm else x

    def _grid(self, images: Float[Array, "b h w 3"]) -> tuple[int, int]:
        """Rows and columns of patches of these images."""
        return images.shape[1] // self.config.patch_size, images.shape[2] // self.config.patch_size

    def _features(self, x: Float[Array, "b n f"], images: Float[Array, "b h w 3"]) -> Features:
        """What is handed on of all tokens, those in front of the patches first."""
        c, (rows, columns) = self.config, self._grid(images)
        start = c.prefix if c.feature_start is None else c.feature_start
        grid = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
        grid = jnp.pad(grid, ((c.prefix, 0), (0, 0)), constant_values=-1)[start:]
        x = x[:, start:]
        return Features(x, jnp.broadcast_to(grid, (x.shape[0], *grid.shape)), jnp.ones(x.shape[:2], bool))
