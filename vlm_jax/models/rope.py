"""Rotary positions (RoFormer, arXiv 2104.09864) and how long-context checkpoints stretch them."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


KINDS = ("linear", "llama3", "yarn", "dynamic")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """`kind`: "linear" (arXiv 2306.15595), "llama3" (arXiv 2407.21783), "yarn" (arXiv 2309.00071) or "dynamic" (its
    section 3.3: nothing is stretched until the longest row of a batch is longer than `original_length`).

    `original_length` is the context before stretching, in tokens; `low_freq` and `high_freq` are llama3's, `beta_fast`,
    `beta_slow`, `attention_factor` and `truncate` (the ramp's ends are whole channels) YaRN's.
    """

    kind: str
    factor: float
    original_length: int = 8192
    low_freq: float = 1.0
    high_freq: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"Rope scaling '{self.kind}' is unknown; choose one of {', '.join(KINDS)}.")
        if not isinstance(self.factor, (int, float)) or not self.factor > 0:
            raise ValueError(f"Rope scaling has factor {self.factor!r}; give a number above 0.")


def frequencies(dim: int, theta: float, scaling: RopeScaling | None = None) -> tuple[np.ndarray, float]:
    """(turns per position in radians [dim / 2] float32, factor on cos and sin); of "dynamic", those of short rows."""
    base = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling is None or scaling.kind == "dynamic":
        return base.astype(np.float32), 1.0
    stretched, amplitude = base / scaling.factor, 1.0
    if scaling.kind == "linear":
        mix = np.ones_like(base)
    elif scaling.kind == "llama3":  # long waves are stretched, short ones kept, between them a ramp
        turns = scaling.original_length * base / (2 * math.pi)
        mix = 1 - np.clip((turns - scaling.low_freq) / (scaling.high_freq - scaling.low_freq), 0, 1)
    else:
        index = lambda turns: (dim * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta)))
        low, high = index(scaling.beta_fast), index(scaling.beta_slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        mix = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
        amplitude = scaling.attention_factor or 0.1 * math.log(max(scaling.factor, 1)) + 1
    return (stretched * mix + base * (1 - mix)).astype(np.float32), amplitude


def _lengthened(turns: np.ndarray, scaling: RopeScaling, length: Int[Array, ""]) -> Float[Array, "half"]:
    """The turns of "dynamic" where the longest row has `length` tokens: theta grows with it."""
    beyond = jnp.maximum(length / scaling.original_length, 1.0)
    growth = scaling.factor * beyond - (scaling.factor - 1)
    exponents = np.arange(len(turns)) / max(len(turns) - 1, 1)  # theta times growth^(d / (d - 2)), to the power -2i/d
    return turns * growth ** -exponents.astype(np.float32)


def rotate(
    x: Float[Array, "b t h d"], positions: Int[Array, "b t *axes"], theta: float, scaling: RopeScaling | None = None,
    sections: tuple[int, ...] = (), axial: bool = False,
) -> Float[Array, "b t h d"]:
    """x turned by its position, in the half-split layout of Llama's Hugging Face weights.

    Channel pair (i, i + d/2) turns by position * theta^(-2i/d). With positions of several axes [b, t, a] (row and
    column of a patch; time, row and column in Qwen2-VL's M-RoPE, arXiv 2409.12191) `sections` says how many pairs,
    one after the other, turn by each axis; `axial` starts the frequencies anew in each section.
    """
    dim, half = x.shape[-1], x.shape[-1] // 2
    if axial:
        turns, amplitude = np.concatenate([frequencies(2 * pairs, theta)[0] for pairs in sections]), 1.0
    else:
        turns, amplitude = frequencies(dim, theta, scaling)
        if scaling is not None and scaling.kind == "dynamic":
            turns = _lengthened(turns, scaling, positions.max() + 1)
    if positions.ndim == 3:
        if sum(sections) != half or len(sections) != positions.shape[-1]:
            raise ValueError(f"Rotary sections {sections} must be {positions.shape[-1]} that sum to {half} pairs.")
        positions = positions[..., np.repeat(np.arange(len(sections)), sections)]
    else:
        positions = positions[..., None]
    angles = (positions.astype(jnp.float32) * turns)[:, :, None]
    cos, sin = jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
