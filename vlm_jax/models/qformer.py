"""The Q-Former of BLIP-2 (arXiv 2301.12597): learned queries that read the features of an image and come out as its
visual tokens, as many for every image."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.models.attention import attention
from vlm_jax.models.layers import Linear, Mlp, Norm
from vlm_jax.models.mask import PADDING, SequenceInfo, describe
from vlm_jax.models.transformer import Params, unstack
from vlm_jax.models.vit import Features


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """BERT's post-norm layers; every `cross_every`-th, from the first on, also attends to the features."""

    queries: int
    layers: int
    width: int
    heads: int
    mlp_width: int
    cross_every: int = 2
    norm_eps: float = 1e-12
    activation: str = "gelu"

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; change one of them.")

    @property
    def cross_layers(self) -> int:
        """How many layers attend to the features."""
        return -(-self.layers // self.cross_every)


class Attend(nn.Module):
    """norm(x + attn(x, source)): queries from x [b, t, w], keys and values from `source` [b, s, f]."""

    config: QFormerConfig

    @nn.compact
    def __call__(self, x, source, info: SequenceInfo | None = None, source_info: SequenceInfo | None = None):
        c = self.config
        heads = lambda name, y: Linear(c.width, name=name)(y).reshape(*y.shape[:2], c.heads, c.width // c.heads)
        y = attention(heads("q", x), heads("k", source), heads("v", source), info, source_info)
        return Norm("layer", c.norm_eps, name="norm")(x + Linear(c.width, name="o")(y.reshape(x.shape)))


class Feed(nn.Module):
    """norm(x + mlp(x))."""

    config: QFormerConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        y = Mlp(c.mlp_width, c.activation, gated=False, use_bias=True, out_std=c.mlp_width**-0.5, name="mlp")(x)
        return Norm("layer", c.norm_eps, name="norm")(x + y)


class QFormer(nn.Module):
    """Parameters: `query_tokens` [queries, w] and their `norm`; `attn` and `feed`, stacked over the layers; `cross`,
    stacked over those that attend to the features."""

    config: QFormerConfig

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "b q w"]:
        c, source = self.config, features.features
        batch = source.shape[0]
        queries = self.param("query_tokens", nn.initializers.normal(0.02), (c.queries, c.width))
        x = jnp.broadcast_to(queries, (batch, *queries.shape)).astype(source.dtype)
        x = Norm("layer", c.norm_eps, name="norm")(x)
        info = describe(jnp.zeros((batch, c.queries), jnp.int32), mask_ar=0)
        source_info = describe(jnp.where(features.mask, 0, PADDING), mask_ar=0)
        attn, cross, feed = Attend(c, parent=None), Attend(c, parent=None), Feed(c, parent=None)
        attns = self._stack("attn", attn, c.layers, x[:1], x[:1])
        crosses = self._stack("cross", cross, c.cross_layers, x[:1], source[:1])
        feeds = self._stack("feed", feed, c.layers, x[:1])
        for i in range(c.layers):
            x = attn.apply({"params": attns[i]}, x, x)
            if i % c.cross_every == 0:
                x = cross.apply({"params": crosses[i // c.cross_every]}, x, source, info, source_info)
            x = feed.apply({"params": feeds[i]}, x)
        return x

    def _stack(self, name: str, block: nn.Module, layers: int, *inputs: Array) -> tuple[Params, ...]:
        """Declares the parameters of `layers` such blocks under one name, stacked; returns them one tree a layer."""
        if self.is_initializing():
            init = lambda rng: jax.vmap(lambda key: block.init(key, *inputs)["params"])(jax.random.split(rng, layers))
            params = self.param(name, init)
        else:
            params = self.get_variable("params", name)
        return unstack(params, layers)
