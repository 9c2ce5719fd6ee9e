"""What an objective is: a pure function from parameters and a batch to weighted sums.

    sums, weights = objective(params, batch, rng)
    loss = sum over objective.terms of coefficient * sums[name] / weights[name]

Sums and weights run over the whole (global) batch and the division is taken once, after every device and every
microbatch has added its part, so neither sharding nor accumulation changes the answer. Where examples meet (contrastive
ones are each other's negatives) an objective is made of two halves, so that microbatches can be embedded one by one:

    objective(params, batch, rng) = compare(params, embed(params, batch, rng), batch)

with features of the examples, [n, ...] each, in between. Weights depend on the batch alone. Names that are not in
`terms` are reported and not trained on.
"""

from __future__ import annotations

from typing import Mapping, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

Sums = dict[str, Float[Array, ""]]
Batch = Mapping[str, Array]


class Objective(Protocol):
    terms: Mapping[str, float]

    def __call__(self, params, batch: Batch, rng: Array) -> tuple[Sums, Sums]: ...


def means(sums: Sums, weights: Sums) -> Sums:
    """sums / weights, and 0 where a weight is 0 (a batch in which nothing carries this loss)."""
    return {name: jnp.where(weights[name] > 0, sums[name] / jnp.where(weights[name] > 0, weights[name], 1), 0.0)
            for name in sums}


def total(terms: Mapping[str, float], values: Sums) -> Float[Array, ""]:
    """The loss: the terms' means times their coefficients."""
    return sum(coefficient * values[name] for name, coefficient in terms.items())
