"""The one train step. What differs between stages is the objective and which paths are trained."""

from __future__ import annotations

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from vlm_jax.objectives.base import Batch, Objective
from vlm_jax.training.accumulate import gradients
from vlm_jax.training.mesh import batch_sharding
from vlm_jax.training.rules import flatten, unflatten
from vlm_jax.training.sharding import state_shardings
from vlm_jax.training.state import TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def train_step(
    state: TrainState, batch: Batch, *, objective: Objective, tx: optax.GradientTransformation,
    paths: list[str], seed: int, microbatches: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of the trainable paths. Pure, and callable without a mesh.

    Gradients are taken with respect to the trainable leaves alone: the others are constants, so they cost no backward
    pass, no gradient and no optimizer state, and come out as they went in. So do all of them, and the optimizer's
    state, where the loss or a gradient is not finite.
    """
    flat = flatten(state.params)
    trainable = {path: flat[path] for path in paths}
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    complete = lambda trainable: unflatten({**flat, **trainable})
    loss, values, grads = gradients(objective, complete, trainable, batch, rng, microbatches)
    norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    kept = lambda new, old: jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    params = complete(kept(optax.apply_updates(trainable, updates), trainable))
    metrics = {"loss": loss, **values, "grad_norm": norm}
    return TrainState(state.step + 1, params, kept(opt_state, state.opt_state)), metrics


def compile_step(state: Any, mesh: Mesh, **static) -> Step:
    """The step jitted over a mesh; `state` may be abstract. The state's buffers are given away and reused."""
    shardings = state_shardings(state, mesh)
    return jax.jit(
        lambda state, batch: train_step(state, batch, **static),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, jax.NamedSharding(mesh, jax.P())),
        donate_argnums=0,
    )
