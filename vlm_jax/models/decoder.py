"""g_phi: a decoder with an explicit cache. Llama-style (RMSNorm, rotary positions, grouped-query attention, SwiGLU)
unless its options say otherwise."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from vlm_jax.models.axes import constrain
from vlm_jax.models.layers import Linear, Norm, lookup
from vlm_jax.models.mask import SequenceInfo, empty
from vlm_jax.models.transformer import (
    LayerCache, Params, TransformerConfig, apply_blocks, declare_blocks, unstack)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """`embed_scale` multiplies text embeddings, not visual tokens, and `logit_softcap` bounds logits (Gemma 2).

    `position_table` is the number of rows of a learned position embedding, 0 for none; position p takes row p +
    `position_offset` (OPT: 2). `mask` says what a prompt may see: "causal"; "prefix", itself both ways (PaliGemma); or
    "image_blocks", each image itself both ways and all else causal (Gemma 3). `first_position` is that of a row's first
    token.
    """

    vocab_size: int
    transformer: TransformerConfig
    tie_embeddings: bool = False
    embed_scale: float | None = None
    logit_softcap: float | None = None
    position_table: int = 0
    position_offset: int = 0
    mask: str = "causal"
    first_position: int = 0

    def __post_init__(self):
        if self.mask not in ("causal", "prefix", "image_blocks"):
            raise ValueError(f"mask '{self.mask}' is unknown; choose 'causal', 'prefix' or 'image_blocks'.")

    @property
    def positions(self) -> int | None:
        """How many positions a row may have; None where they are not learned, and any number will do."""
        return self.position_table - self.position_offset if self.position_table else None


@struct.dataclass
class KVCache:
    """What a decoder remembers of the tokens so far; goes in, comes out, and is never changed in place.

    layers: per layer (keys, values), each [b, slots, kv_heads, head_dim].
    info: description of the tokens in the slots [b, slots]; segment -1 marks an unused slot.
    length: int32 scalar, slots written so far (the same for all rows; a row's padding uses slots too).
    """

    layers: tuple[LayerCache, ...]
    info: SequenceInfo
    length: Int[Array, ""]


def init_cache(config: DecoderConfig, batch: int, slots: int, dtype=jnp.float32) -> KVCache:
    """An empty cache of `slots` tokens a row; every buffer is its own, so that all of it can be donated."""
    t = config.transformer
    buffer = lambda: jnp.zeros((batch, slots, t.groups, t.dim), dtype)
    return KVCache(tuple((buffer(), buffer()) for _ in range(t.layers)), empty(batch, slots), jnp.int32(0))


def unstack_decoder(params: Params, config: DecoderConfig) -> Params:
    """A decoder's parameters with the blocks as one tree a layer: do it once, before a decoding loop."""
    return {**params, "blocks": unstack(params["blocks"], config.transformer.layers)}


class Decoder(nn.Module):
    config: DecoderConfig

    def setup(self):
        c, t = self.config, self.config.transformer
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (c.vocab_size, t.width))
        if c.position_table:
            table = (c.position_table, t.width)
            self.position_embedding = self.param("position_embedding", nn.initializers.normal(0.02), table)
        self.blocks = declare_blocks(self, t)
        self.norm_post = Norm(t.norm, t.norm_eps)
        if not c.tie_embeddings:
            self.lm_head = Linear(c.vocab_size, use_bias=False, out_dtype="float32")

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        x = lookup(self.embedding, tokens)
        return x if self.config.embed_scale is None else x * jnp.asarray(self.config.embed_scale, x.dtype)

    def place(self, x: Float[Array, "b t d"], info: SequenceInfo) -> Float[Array, "b t d"]:
        """Embedded tokens as the first block sees them."""
        if not self.config.position_table:
            return x
        return x + self.position_embedding[info.positions + self.config.position_offset].astype(x.dtype)

    def hidden(self, x: Float[Array, "b t d"], info: SequenceInfo, cache: KVCache | None = None):
        """Embedded tokens to final hidden states [b, t, d], and the cache with these tokens added."""
        c = self.config.transformer
        if cache is None:
            return self.states(x, info)[-1], None
        kv_info = cache.info.write(info, cache.length)
        states, layers = apply_blocks(c, self.blocks, self.place(x, info), info, kv_info, cache.layers, cache.length)
        return self.norm_post(states[-1]), KVCache(layers, kv_info, cache.length + x.shape[1])

    def states(self, x: Float[Array, "b t d"], info: SequenceInfo) -> list[Float[Array, "b t d"]]:
        """[embedded tokens, after block 1, ..., after the last block and the final norm]."""
        states, _ = apply_blocks(self.config.transformer, self.blocks, self.place(x, info), info)
        return [*states[:-1], self.norm_post(states[-1])]

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t vocab"]:
        """Next-token logits, float32."""
        c = self.config
        if c.tie_embeddings:
            logits = jnp.matmul(hidden, self.embedding.T.astype(hidden.dtype), preferred_element_type=jnp.float32)
        else:
            logits = self.lm_head(hidden)
        logits = constrain(logits, "batch", "tokens", "vocab")
        return logits if c.logit_softcap is None else c.logit_softcap * jnp.tanh(logits / c.logit_softcap)

    def __call__(self, tokens: Int[Array, "b t"], info: SequenceInfo, cache: KVCache | None = None):
        """Plain language model: (logits [b, t, vocab], cache)."""
        hidden, cache = self.hidden(self.embed(tokens), info, cache)
        return self.logits(hidden), cache
