"""The training state: one pytree, created in place on the mesh, never gathered on a host."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from vlm_jax.models.lora import adapters
from vlm_jax.training.rules import Rules, flatten, match, unflatten
from vlm_jax.training.sharding import state_shardings


@struct.dataclass
class TrainState:
    """step: steps done in this stage. params: the whole model tree. opt_state: of the trainable paths alone."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any


def fresh_state(params: Any, tx: optax.GradientTransformation, paths: list[str]) -> TrainState:
    """A stage's first state around the parameters it starts from."""
    flat = flatten(params)
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init({path: flat[path] for path in paths}))


def sharded(make, mesh: Mesh, *args) -> Any:
    """make(*args) computed on the mesh, each leaf born where it lives."""
    shardings = state_shardings(jax.eval_shape(make, *args), mesh)
    return jax.jit(make, out_shardings=shardings)(*args)


def shaped(tree: Any) -> Any:
    """Shapes and dtypes of a tree of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def adapted(params: Any, rules: Rules, rng: Array, mesh: Mesh) -> Any:
    """`params` with fresh adapters beside the kernels that `rules` give a rank (regex on paths -> rank, first match
    wins); abstract parameters get abstract adapters."""
    ranks = {path: rank for path, rank in match([*rules, (".*", None)], list(flatten(params))).items() if rank}
    make = lambda: unflatten(adapters(shaped(params), ranks, rng))
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    return unflatten({**flatten(params), **flatten(jax.eval_shape(make) if abstract else sharded(make, mesh))})
