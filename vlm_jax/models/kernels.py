"""Fused attention kernels: each translates the mask description, or says in words why it cannot.

A kernel has `refusal(q, k, q_info, kv_info, window, scale, softcap)` -> the reason, or None where it can serve, and the
call itself with the same arguments and v. Both work on each device's rows and heads alone.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.models.axes import splitting
from vlm_jax.models.mask import SequenceInfo, build_mask

TILE = 128  # tokens and channels in a register of a TPU
BLOCKS = (512, 256, 128)  # tokens a splash kernel takes at once: the largest that divides


def _locally(call, q, k, v, *more: Array | None):
    """call(q, k, v, *more) on each device's own rows and heads; `more` has rows alone."""
    rows, heads = splitting("batch"), splitting("heads")
    heads = heads if all(x.shape[2] % _sizes(heads) == 0 for x in (q, k)) else ()
    rows = rows if q.shape[0] % _sizes(rows) == 0 else ()
    if not rows and not heads:
        return call(q, k, v, *more)
    each = jax.P(rows or None, None, heads or None)
    specs = (each,) * 3 + tuple(None if x is None else jax.P(rows or None) for x in more)
    # A kernel does not say which mesh axes its results vary along, so that cannot be checked.
    return jax.shard_map(call, in_specs=specs, out_specs=each, check_vma=False)(q, k, v, *more)


def _sizes(axes: tuple[str, ...]) -> int:
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in axes)


def cudnn_refusal(q, k, q_info, kv_info, window, scale, softcap) -> str | None:
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 or float16, not {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        return f"its heads have up to 256 channels, a multiple of 8, not {q.shape[-1]}"
    if q_info is not None and (q.shape[1] % 2 or k.shape[1] % 2):
        return f"with a mask it takes even numbers of tokens, not {q.shape[1]} and {k.shape[1]}"
    if softcap is not None:
        return "it has no softcap"
    return "it does not split tokens over devices" if splitting("tokens") else None


def cudnn(
    q: Float[Array, "b t h d"], k: Float[Array, "b s g d"], v: Float[Array, "b s g d"], q_info: SequenceInfo | None,
    kv_info: SequenceInfo | None, window: int | None, scale: float | None, softcap: float | None,
    implementation: str = "cudnn",
) -> Float[Array, "b t h d"]:
    """The kernel of NVIDIA's library. Whatever the description says goes to it as a bias of [b, 1, t, s]."""
    mask = None if q_info is None else build_mask(q_info, kv_info, window)[:, None]

    def call(q, k, v, mask):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation=implementation)

    return _locally(call, q, k, v, mask)


def splash_refusal(q, k, q_info, kv_info, window, scale, softcap) -> str | None:
    if splitting("tokens"):
        return "it does not split tokens over devices"
    if q_info is None:
        return None
    if q_info.pattern != kv_info.pattern or q_info.pattern == "any":
        return "branches, image blocks, prefixes and caches are known only while it runs"
    if window is not None and q_info.pattern == "causal" and not q_info.counted:
        return "it counts a window in tokens of the row, and this row brings positions of its own"
    return None


def splash(
    q: Float[Array, "b t h d"], k: Float[Array, "b s g d"], v: Float[Array, "b s g d"], q_info: SequenceInfo | None,
    kv_info: SequenceInfo | None, window: int | None, scale: float | None, softcap: float | None,
    interpret: bool = False,
) -> Float[Array, "b t h d"]:
    """JAX's TPU kernel. Causal or bidirectional rows are a mask it compiles in; segments (and padding, which sees
    itself) are arrays it reads. Tokens are padded to whole tiles with a segment of their own, and channels with zeros.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds  # only a TPU pays for this import

    targets, channels = q.shape[1], q.shape[-1]
    causal = q_info is not None and q_info.pattern == "causal"
    segments = [jnp.zeros(x.shape[:2], jnp.int32) if info is None else info.segment_ids
                for x, info in ((q, q_info), (k, kv_info))]

    def call(q, k, v, *segments):
        q, k, v = (_padded(_padded(x, 1), 3).swapaxes(1, 2) for x in (q, k, v))
        kernel = _splash_kernel(*q.shape[1:3], k.shape[2], causal, window, softcap, interpret)
        return jax.vmap(kernel)(q, k, v, SegmentIds(*segments)).swapaxes(1, 2)[:, :targets, :, :channels]

    q = q * (channels**-0.5 if scale is None else scale)
    return _locally(call, q, k, v, *(_padded(x, 1, value=-2) for x in segments))


def _padded(x: Array, axis: int, value: int = 0) -> Array:
    """x with whole tiles along an axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % TILE)
    return jnp.pad(x, widths, constant_values=value)


def _splash_kernel(heads: int, targets: int, sources: int, causal: bool, window: int | None, softcap: float | None,
                   interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash_kernel

    shape = (targets, sources)
    if not causal:
        mask = splash_kernel.FullMask(shape)
    elif window is None:
        mask = splash_kernel.CausalMask(shape)
    else:
        mask = splash_kernel.LocalMask(shape, (window - 1, 0), 0)
    rows, columns = (next(size for size in BLOCKS if length % size == 0) for length in shape)
    blocks = splash_kernel.BlockSizes(
        block_q=rows, block_kv=columns, block_kv_compute=columns, block_q_dkv=rows, block_kv_dkv=columns,
        block_kv_dkv_compute=columns, block_q_dq=rows, block_kv_dq=columns)
    return splash_kernel.make_splash_mha(
        splash_kernel.MultiHeadMask([mask] * heads), block_sizes=blocks, head_shards=1, q_seq_shards=1,
        attn_logits_soft_cap=softcap, interpret=interpret)
