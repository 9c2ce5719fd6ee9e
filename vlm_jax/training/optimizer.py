"""The optimizer, with a peak learning rate and a weight decay for each parameter path; frozen parameters never reach it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vlm_jax.training.rules import Rules, match

NAMES, MOMENTS = ("adamw", "adafactor", "sgd"), ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates stand in the stage's `trainable` rules; here is what they share.

    `name`: "adamw"; "adafactor" as large vision models use it (arXiv 2106.04560, section 3.4: a second moment by rows and
    columns, updates clipped to a root mean square of 1, a first moment, no relative step); "sgd" with momentum `b1`.
    `moments` is the dtype of first moments and of momentum; second moments stay float32, for they change by less than
    bfloat16 can tell. The rate rises linearly over `warmup` (a share of the steps) and falls to `final` times its peak
    along a cosine. Weight decay is decoupled (times the learning rate, as in torch's AdamW): a path has that of the first
    rule of `decay` that matches it, else `weight_decay` if it is a kernel, else none.
    """

    name: str = "adamw"
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    moments: str = "float32"
    weight_decay: float = 0.02
    decay: tuple[tuple[str, float], ...] = ()
    clip: float = 1.0  # global norm of the gradients
    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self):
        for key, known in (("name", NAMES), ("moments", MOMENTS)):
            if getattr(self, key) not in known:
                raise ValueError(f"optimizer.{key} '{getattr(self, key)}' is unknown; choose one of {', '.join(known)}.")


def schedule(config: OptimizerConfig, steps: int, step: Array) -> Float[Array, ""]:
    """Share of the peak learning rate at a step (0-based): the first step already moves."""
    warmup = max(int(config.warmup * steps), 1)
    rising = (step + 1) / warmup
    progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    falling = config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup, rising, falling)


def make_optimizer(config: OptimizerConfig, trainable: Rules, paths: list[str], steps: int):
    """The optax transformation of a flat {path: leaf} tree of trainable parameters."""
    rates, decays = match(trainable, paths), _decays(config, paths)

    def decayed(updates, state, params=None):
        return {path: u + decays[path] * params[path] if decays[path] else u for path, u in updates.items()}, state

    def scaled(updates, state, params=None):
        share = schedule(config, steps, state)
        return {path: -rates[path] * share * u for path, u in updates.items()}, state + 1

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        *_moments(config),
        optax.GradientTransformation(lambda params: optax.EmptyState(), decayed),
        optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), scaled),
    )


def _moments(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    dtype = jnp.dtype(config.moments)
    if config.name == "adamw":
        return [optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=dtype)]
    if config.name == "adafactor":
        return [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0),
                optax.ema(config.b1, debias=False, accumulator_dtype=dtype)]
    return [optax.trace(config.b1, accumulator_dtype=dtype)]


def _decays(config: OptimizerConfig, paths: list[str]) -> dict[str, float]:
    """The weight decay of each path."""
    given = match([*config.decay, (".*", None)], paths)
    usual = {path: config.weight_decay if path.endswith("kernel") else 0.0 for path in paths}
    return {path: usual[path] if value is None else value for path, value in given.items()}


def trainable_paths(rules: Rules, paths: list[str]) -> list[str]:
    """Paths with a learning rate; a rate of None freezes."""
    return [path for path, rate in match(rules, paths).items() if rate is not None]


def peak_rate(rules: Rules, paths: list[str]) -> float:
    """The largest learning rate in use, for the log."""
    return max((rate for rate in match(rules, paths).values() if rate is not None), default=0.0)


def count(tree) -> int:
    """Number of values in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
