"""The attention-pooling head of SigLIP (arXiv 2303.15343; "MAP" in arXiv 2106.04560)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vlm_jax.models.attention import attention
from vlm_jax.models.layers import Linear, Mlp, Norm
from vlm_jax.models.mask import PADDING, describe
from vlm_jax.models.transformer import TransformerConfig


class AttentionPool(nn.Module):
    """One learned query, the probe, attends to all tokens: y = attn(probe, x, x), then y + mlp(norm(y)).

    Heads, widths, norm and activation are those of the tower it closes.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b n w"], mask: Bool[Array, "b n"] | None = None) -> Float[Array, "b w"]:
        """Tokens where `mask` is false are not looked at."""
        c = self.config
        probe = self.param("probe", nn.initializers.normal(c.width**-0.5), (c.width,))
        probe = jnp.broadcast_to(probe, (x.shape[0], 1, c.width)).astype(x.dtype)
        heads = lambda name, y: Linear(c.width, name=name)(y).reshape(*y.shape[:2], c.heads, c.dim)
        infos = ()
        if mask is not None:
            infos = (describe(jnp.zeros((x.shape[0], 1)), mask_ar=0), describe(jnp.where(mask, 0, PADDING), mask_ar=0))
        y = attention(heads("q", probe), heads("k", x), heads("v", x), *infos).reshape(x.shape[0], c.width)
        y = Linear(c.width, name="o")(y)
        mlp = Mlp(c.mlp_width, c.activation, gated=False, use_bias=True, out_std=c.out_std, name="mlp")
        return y + mlp(Norm(c.norm, c.norm_eps, name="norm")(y))
