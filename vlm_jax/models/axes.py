"""The name of every dimension: of parameters by their path, of activations where they are made.

A name says what a dimension is; which mesh axis splits it is a rule. The rules of parameters stand in
`training/sharding.py`, where a state is placed; those of activations stand here, because a model places its own.
"""

from __future__ import annotations

import math
import re

import jax
from jax import lax
from jaxtyping import Array

# End of the path -> names of the dimensions, without the leading layer axis of stacked blocks. The first match wins.
PARAMETERS = (
    (r"(q|k|v)/kernel", ("embed", "heads")),
    (r"o/kernel", ("heads", "embed")),
    (r"(up|gate)/kernel", ("embed", "mlp")),
    (r"down/kernel", ("mlp", "embed")),
    (r"lm_head/kernel", ("embed", "vocab")),
    (r"patch_embed/kernel", ("pixels", "embed")),
    (r"kernel", ("in", "out")),
    (r"lora_a", ("in", "rank")),
    (r"lora_b", ("rank", "out")),
    (r"(token_)?embedding", ("vocab", "embed")),
    (r"position_embedding", ("positions", "embed")),
    (r"logit_scale|logit_bias", ()),
    (r"[^/]+", ("vector",)),  # biases, norms and single tokens: never worth splitting
)

STACKS = r"(^|/)(blocks|qformer)/"  # what lies under these has a leading axis of layers

# Mesh axes that split a dimension of an activation. Keys and values are whole along their tokens: each query sees all.
ACTIVATIONS = {
    "batch": ("data", "fsdp"), "tokens": ("context",), "keys": (), "embed": (), "heads": ("tensor",), "head_dim": (),
    "mlp": ("tensor",), "vocab": ("tensor",), "lookup_batch": ("data",), "lookup_embed": ("fsdp",),
}


def parameter_axes(path: str, ndim: int) -> tuple[str, ...]:
    """Names of the dimensions of the parameter at `path`.

    Raises ValueError where the table knows no parameter of that path with so many dimensions.
    """
    stacked = ("layers",) if re.search(STACKS, path) else ()
    for pattern, names in PARAMETERS:
        if re.search(rf"(^|/)({pattern})$", path):
            if ndim == len(stacked + names):
                return stacked + names
            break
    raise ValueError(f"The {ndim} dimensions of the parameter '{path}' have no names; add a line to PARAMETERS in "
                     f"models/axes.py.")


def splitting(name: str) -> tuple[str, ...]:
    """The mesh axes in force (`jax.set_mesh`) that split the activation dimension `name`; none on one device."""
    if name not in ACTIVATIONS:
        raise ValueError(f"'{name}' names no dimension of an activation; choose one of {', '.join(ACTIVATIONS)}.")
    sizes = jax.sharding.get_abstract_mesh().shape
    return tuple(axis for axis in ACTIVATIONS[name] if sizes.get(axis, 1) > 1)


def constrain(x: Array, *names: str) -> Array:
    """x, placed on the mesh in force (`jax.set_mesh`) by the names of its dimensions; unknown names raise.

    A dimension that its mesh axes do not divide stays whole (a class token makes an odd number of tokens; a prompt
    is a batch of one). Without a mesh, or on a mesh of one device, x is left as it is.
    """
    sizes, spec = jax.sharding.get_abstract_mesh().shape, []
    for size, name in zip(x.shape, names, strict=True):
        axes = splitting(name)
        fits = size % math.prod(sizes[axis] for axis in axes) == 0
        spec.append(axes if axes and fits else None)
    return lax.with_sharding_constraint(x, jax.P(*spec)) if any(spec) else x
