"""f_t: CLIP's text tower, a causal transformer pooled at the end token (arXiv 2103.00020)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.models.layers import Norm
from vlm_jax.models.mask import describe
from vlm_jax.models.transformer import TransformerConfig, apply_blocks, declare_blocks


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """`context` is the row length in tokens, `end_id` the token whose first occurrence is pooled."""

    vocab_size: int
    context: int
    end_id: int
    transformer: TransformerConfig


class TextTower(nn.Module):
    config: TextConfig

    def setup(self):
        c, t = self.config, self.config.transformer
        self.token_embedding = self.param("token_embedding", nn.initializers.normal(0.02), (c.vocab_size, t.width))
        self.position_embedding = self.param("position_embedding", nn.initializers.normal(0.01), (c.context, t.width))
        self.blocks = declare_blocks(self, t)
        self.norm_post = Norm(t.norm, t.norm_eps)

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b w"]:
        """Pooled text features. Padding needs no mask: it follows the end token, and the tower is causal."""
        x = self.token_embedding[tokens] + self.position_embedding[: tokens.shape[1]]
        hidden, _ = apply_blocks(self.config.transformer, self.blocks, x, describe(jnp.zeros_like(tokens)))
        end = jnp.argmax(tokens == self.config.end_id, axis=1)
        pooled = jnp.take_along_axis(hidden[-1], end[:, None, None], axis=1)[:, 0]
        return self.norm_post(pooled)
