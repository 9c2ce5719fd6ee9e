"""The one attention function. It takes a mask description, never a dense mask; a backend translates it or refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.models.mask import SequenceInfo, build_mask


def attention_weights(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s g d"],
    q_info: SequenceInfo | None = None,
    kv_info: SequenceInfo | None = None,
    *,
    window: int | None = None,
) -> Float[Array, "b g r t s"]:
    """softmax(q k^T / sqrt(d)) in float32, heads split into g groups of r = h / g that share keys.

    Without descriptions every query sees every key. A row that may see nothing (padding) gets finite, meaningless
    weights, never NaN.
    """
    (batch, targets, heads, dim), (_, sources, groups, _) = q.shape, k.shape
    repeat = heads // groups
    # Batched matmuls over (batch * groups, tokens, dim): faster on CPU, see experiments/benchmarks/layers.py.
    q = q.reshape(batch, targets, groups, repeat, dim).transpose(0, 2, 3, 1, 4) * dim**-0.5
    q = q.reshape(batch * groups, repeat * targets, dim)
    k = k.transpose(0, 2, 3, 1).reshape(batch * groups, dim, sources)
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, groups, repeat, targets, sources)
    if q_info is not None:
        mask = build_mask(q_info, q_info if kv_info is None else kv_info, window)[:, None, None]
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)


def attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s g d"],
    v: Float[Array, "b s g d"],
    q_info: SequenceInfo | None = None,
    kv_info: SequenceInfo | None = None,
    *,
    window: int | None = None,
) -> Float[Array, "b t h d"]:
    """Attn(Q, K, V) = softmax(Q K^T / sqrt(d)) V, with grouped keys and values (g divides h)."""
    batch, targets, heads, dim = q.shape
    sources, groups = k.shape[1:3]
    weights = attention_weights(q, k, q_info, kv_info, window=window).astype(v.dtype)
    weights = weights.reshape(batch * groups, -1, sources)
    v = v.transpose(0, 2, 1, 3).reshape(batch * groups, sources, dim)
    out = (weights @ v).reshape(batch, groups, heads // groups, targets, dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, targets, heads, dim)
