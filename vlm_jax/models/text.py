"""f_t: CLIP's text tower, a causal transformer pooled at the end token (arXiv 2103.00020); with its options SigLIP's,
which sees both ways and is pooled at the last position (arXiv 2303.15343)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.layers import Norm, lookup
from vlm_jax.models.mask import PADDING, describe
from vlm_jax.models.transformer import TransformerConfig, apply_blocks, declare_blocks


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """`context` is the row length in tokens.

    `pool` "end" takes the first `end_id` of a row (position 0 where there is none), or the first of its largest ids if
    `end_id` is None, as OpenAI's code does; "last" takes the last position, whatever stands there.
    """

    vocab_size: int
    context: int
    end_id: int | None
    transformer: TransformerConfig
    causal: bool = True
    pool: str = "end"

    def __post_init__(self):
        if self.pool not in ("end", "last"):
            raise ValueError(f"pool '{self.pool}' is unknown; choose 'end' or 'last'.")


class TextTower(nn.Module):
    config: TextConfig

    def setup(self):
        c, t = self.config, self.config.transformer
        self.token_embedding = self.param("token_embedding", nn.initializers.normal(0.02), (c.vocab_size, t.width))
        self.position_embedding = self.param("position_embedding", nn.initializers.normal(0.01), (c.context, t.width))
        self.blocks = declare_blocks(self, t)
        self.norm_post = Norm(t.norm, t.norm_eps)

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b w"]:
        """Pooled text features. Padding needs no mask: a causal tower is pooled before it, a bidirectional one was
        trained to read it, so that its rows must be padded to the length of the training (`context`)."""
        return self.pool(self.states(tokens), tokens)

    def states(self, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"] | None = None) -> Float[Array, "b t w"]:
        """Output of the last block; tokens where `mask` is false are seen by none.

        Raises ValueError for rows longer than `context`.
        """
        c, length = self.config, tokens.shape[1]
        if length > c.context:
            raise ValueError(f"A row has {length} tokens, the text tower takes {c.context}; truncate it.")
        describe_row = lambda segments: describe(segments, mask_ar=int(c.causal))
        info = describe_row(jnp.zeros_like(tokens))  # padding sees the text too: pool "last" may stand on it
        kv_info = info if mask is None else describe_row(jnp.where(mask, 0, PADDING))
        x = lookup(self.token_embedding, tokens) + self.position_embedding[:length]
        return apply_blocks(c.transformer, self.blocks, x, info, kv_info)[0][-1]

    def pool(self, x: Float[Array, "b t w"], tokens: Int[Array, "b t"]) -> Float[Array, "b w"]:
        """One vector a row, of the last block's output."""
        if self.config.pool == "last":
            return self.norm_post(x[:, -1])
        end_id = self.config.end_id
        end = jnp.argmax(tokens if end_id is None else tokens == end_id, axis=1)
        return self.norm_post(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])
