"""The one attention function. It takes a mask description, never a dense mask; a backend translates it or refuses."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.models import kernels
from vlm_jax.models.execution import current
from vlm_jax.models.mask import SequenceInfo, build_mask

FUSED = {"cudnn": (kernels.cudnn, kernels.cudnn_refusal), "splash": (kernels.splash, kernels.splash_refusal)}
BEST = {"gpu": "cudnn", "tpu": "splash"}  # platform -> what "auto" tries first


def attention_weights(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s g d"],
    q_info: SequenceInfo | None = None,
    kv_info: SequenceInfo | None = None,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "b g r t s"]:
    """softmax(q k^T * scale) in float32, heads split into g groups of r = h / g that share keys; scale is d^-0.5 unless
    given.

    `softcap` c keeps scores s between -c and c, as c tanh(s / c) (Gemma 2, arXiv 2408.00118). Without descriptions
    every query sees every key. A row that may see nothing (padding) gets finite, meaningless weights, never NaN.
    """
    (batch, targets, heads, dim), (_, sources, groups, _) = q.shape, k.shape
    repeat = heads // groups
    # Batched matmuls over (batch * groups, tokens, dim): faster on CPU, see experiments/benchmarks/layers.py.
    q = q.reshape(batch, targets, groups, repeat, dim).transpose(0, 2, 3, 1, 4) * (dim**-0.5 if scale is None else scale)
    q = q.reshape(batch * groups, repeat * targets, dim)
    k = k.transpose(0, 2, 3, 1).reshape(batch * groups, dim, sources)
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, groups, repeat, targets, sources)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
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
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "b t h d"]:
    """Attn(Q, K, V) = softmax(Q K^T / sqrt(d)) V, with grouped keys and values (g divides h); options as above.

    Computed by the backend in force (`execution.attention`). Raises ValueError where one was asked for by name that
    cannot honour this description.
    """
    kv_info = q_info if kv_info is None else kv_info
    backend = _backend(q, k, q_info, kv_info, window, scale, softcap)
    if backend in FUSED:
        return FUSED[backend][0](q, k, v, q_info, kv_info, window, scale, softcap)
    batch, targets, heads, dim = q.shape
    sources, groups = k.shape[1:3]
    weights = attention_weights(q, k, q_info, kv_info, window=window, scale=scale, softcap=softcap).astype(v.dtype)
    weights = weights.reshape(batch * groups, -1, sources)
    v = v.transpose(0, 2, 1, 3).reshape(batch * groups, sources, dim)
    out = (weights @ v).reshape(batch, groups, heads // groups, targets, dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, targets, heads, dim)


def _backend(q, k, q_info, kv_info, window, scale, softcap) -> str:
    asked, platform = current().attention, jax.default_backend()
    name = BEST.get(platform, "xla") if asked == "auto" else asked
    if name not in FUSED:
        return name
    reason = FUSED[name][1](q, k, q_info, kv_info, window, scale, softcap)
    if reason is None and BEST.get(platform) != name:
        reason = f"it does not run on a {platform}"
    if asked == "auto":
        _tell(name if reason is None else f"xla ({name} cannot serve: {reason})")
        return name if reason is None else "xla"
    if reason is not None:
        raise ValueError(f"The attention backend '{name}' cannot serve here: {reason}; set config.execution.attention to "
                         f"'xla' or 'auto'.")
    return name


@functools.cache
def _tell(choice: str) -> None:
    """Says what "auto" chose, each choice once."""
    print(f"attention: {choice}", file=sys.stderr)
