"""AdamW with a peak learning rate for each parameter path; frozen parameters never reach it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vlm_jax.training.rules import Rules, match


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates stand in the stage's `trainable` rules; here is what they share.

    The rate rises linearly over `warmup` (a share of the steps) and falls to `final` times its peak along a cosine.
    Weight decay is decoupled (times the learning rate, as in torch's AdamW) and acts on kernels alone.
    """

    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.02
    clip: float = 1.0  # global norm of the gradients
    warmup: float = 0.05
    final: float = 0.0


def schedule(config: OptimizerConfig, steps: int, step: Array) -> Float[Array, ""]:
    """Share of the peak learning rate at a step (0-based): the first step already moves."""
    warmup = max(int(config.warmup * steps), 1)
    rising = (step + 1) / warmup
    progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    falling = config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup, rising, falling)


def make_optimizer(config: OptimizerConfig, trainable: Rules, paths: list[str], steps: int):
    """The optax transformation of a flat {path: leaf} tree of trainable parameters."""
    rates = match(trainable, paths)

    def scaled(updates, state, params=None):
        share = schedule(config, steps, state)
        return {path: -rates[path] * share * u for path, u in updates.items()}, state + 1

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=lambda tree: {p: p.endswith("kernel") for p in tree}),
        optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), scaled),
    )


def trainable_paths(rules: Rules, paths: list[str]) -> list[str]:
    """Paths with a learning rate; a rate of None freezes."""
    return [path for path, rate in match(rules, paths).items() if rate is not None]


def peak_rate(rules: Rules, paths: list[str]) -> float:
    """The largest learning rate in use, for the log."""
    return max((rate for rate in match(rules, paths).values() if rate is not None), default=0.0)


def count(tree) -> int:
    """Number of values in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
