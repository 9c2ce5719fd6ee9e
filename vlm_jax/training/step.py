"""The one train step. What differs between stages is the objective and which paths are trained."""

from __future__ import annotations

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from vlm_jax.objectives.base import Batch, Objective, means, total
from vlm_jax.training.rules import flatten, unflatten
from vlm_jax.training.sharding import batch_sharding, state_shardings
from vlm_jax.training.state import TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def train_step(
    state: TrainState, batch: Batch, *, objective: Objective, tx: optax.GradientTransformation,
    paths: list[str], seed: int,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of the trainable paths. Pure, and callable without a mesh.

    Gradients are taken with respect to the trainable leaves alone: the others are constants, so they cost no backward
    pass, no gradient and no optimizer state, and come out as they went in.
    """
    flat = flatten(state.params)
    trainable = {path: flat[path] for path in paths}
    rng = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_fn(trainable):
        sums, weights = objective(unflatten({**flat, **trainable}), batch, rng)
        values = means(sums, weights)
        return total(objective.terms, values), values

    (loss, values), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    params = unflatten({**flat, **optax.apply_updates(trainable, updates)})
    metrics = {"loss": loss, **values, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, opt_state), metrics


def compile_step(state: Any, mesh: Mesh, **static) -> Step:
    """The step jitted over a mesh; `state` may be abstract. The state's buffers are given away and reused."""
    shardings = state_shardings(state, mesh)
    return jax.jit(
        lambda state, batch: train_step(state, batch, **static),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, jax.NamedSharding(mesh, jax.P())),
        donate_argnums=0,
    )
