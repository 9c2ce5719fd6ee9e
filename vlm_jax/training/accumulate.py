"""Loss and gradients of a batch taken in several microbatches, equal to those of the batch taken at once."""

from __future__ import annotations

from typing import Any, Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.objectives.base import Batch, Objective, Sums, means, total
from vlm_jax.training.rules import Flat

Gradients = tuple[Float[Array, ""], Sums, Flat]  # loss, means of all that is reported, gradients by path
Complete = Callable[[Flat], Any]  # trainable leaves -> the whole tree of parameters


def split(tree: Any, parts: int) -> Any:
    """[b, ...] -> [parts, b / parts, ...]: part i takes every parts-th example, from i on.

    So each device's share of the batch is cut where it lies; consecutive examples would have to change places.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def join(tree: Any) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def gradients(
    objective: Objective, complete: Complete, trainable: Flat, batch: Batch, rng: Array, microbatches: int
) -> Gradients:
    """Of the objective on the whole batch, with the memory of one microbatch."""
    if microbatches == 1:
        def loss_fn(trainable):
            values = means(*objective(complete(trainable), batch, rng))
            return total(objective.terms, values), values

        (loss, values), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        return loss, values, grads
    parts = split(dict(batch), microbatches), jax.random.split(rng, microbatches)
    if hasattr(objective, "embed"):
        return _cached(objective, complete, trainable, batch, parts)
    return _added(objective, complete, trainable, batch, rng, parts)


def _added(objective, complete, trainable, batch, rng, parts) -> Gradients:
    """Examples that do not meet: each microbatch adds its sums, divided by the weights of the whole batch. (Means of
    microbatches would count a token the more, the fewer its microbatch has.)"""
    _, weights = objective(complete(trainable), batch, rng)  # of the batch alone: the sums are never computed

    def add(carry, part):
        def loss_fn(trainable):
            sums, _ = objective(complete(trainable), *part)
            return total(objective.terms, means(sums, weights)), sums

        (_, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        return jax.tree.map(jnp.add, carry, (sums, grads)), None

    zeros = {name: jnp.zeros(()) for name in weights}, jax.tree.map(jnp.zeros_like, trainable)
    (sums, grads), _ = jax.lax.scan(add, zeros, parts)
    values = means(sums, weights)
    return total(objective.terms, values), values, grads


def _cached(objective, complete, trainable, batch, parts) -> Gradients:
    """Examples that meet as features (GradCache, arXiv 2101.06983): embed all microbatches, compare all features, then
    embed each microbatch once more to carry the features' gradients on, with the random keys of the first time."""
    embed = lambda trainable, part: objective.embed(complete(trainable), *part)
    _, features = jax.lax.scan(lambda _, part: (None, embed(trainable, part)), None, parts)

    def loss_fn(trainable, features):
        values = means(*objective.compare(complete(trainable), features, batch))
        return total(objective.terms, values), values

    compared = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(trainable, join(features))
    (loss, values), (grads, wanted) = compared

    def add(grads, given):
        part, wanted = given
        _, pull = jax.vjp(lambda trainable: embed(trainable, part), trainable)
        return jax.tree.map(jnp.add, grads, pull(wanted)[0]), None

    grads, _ = jax.lax.scan(add, grads, (parts, split(wanted, len(parts[1]))))
    return loss, values, grads
