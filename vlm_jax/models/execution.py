"""How blocks are executed, beside what they compute: set around a call, like the mesh, and not a part of any model.

    with jax.set_mesh(mesh), executing(Execution(layers="scan", remat="dots", dtype="bfloat16")):
        step(state, batch)

Nothing of it shows in parameters or checkpoints, and the same model answers elsewhere under the default.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, ContextManager

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LAYERS, DTYPES, ATTENTION = ("unrolled", "scan"), ("float32", "bfloat16"), ("auto", "xla", "cudnn", "splash")
# What the forward pass keeps for the backward pass, which computes the rest again.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # results of the dense layers, not attention's
    "full": jax.checkpoint_policies.nothing_saveable,  # inputs of blocks alone
}


@dataclasses.dataclass(frozen=True)
class Execution:
    """`layers` "scan" compiles one cycle of blocks and loops over it (compile time does not grow with depth), "unrolled"
    all of them. `remat` names a policy of REMAT. `dtype` is that of activations inside the blocks, and of the weights
    there while they are used (None: as the input comes); what is trained stays float32. `attention` names a backend of
    `models/attention.py`; "auto" takes the device's fused one where it can serve, and tells once what it took.
    """

    layers: str = "unrolled"
    remat: str = "none"
    dtype: str | None = None
    attention: str = "auto"

    def __post_init__(self):
        for name, known in (("layers", LAYERS), ("remat", tuple(REMAT)), ("dtype", (None, *DTYPES)),
                            ("attention", ATTENTION)):
            if getattr(self, name) not in known:
                raise ValueError(f"execution.{name} '{getattr(self, name)}' is unknown; choose one of "
                                 f"{', '.join(map(str, known))}.")


_IN_FORCE = jax.make_user_context(Execution())  # part of the key of every jit cache


def executing(execution: Execution) -> ContextManager[None]:
    """Puts an execution in force for what is traced inside."""
    return _IN_FORCE(execution)


def current() -> Execution:
    return _IN_FORCE.value


def as_computed(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x in the dtype in force."""
    return x if current().dtype is None else x.astype(jnp.dtype(current().dtype))


def remat(function: Callable, in_scan: bool) -> Callable:
    """`function`, computed again in the backward pass as far as the policy in force says."""
    if current().remat == "none":
        return function
    return jax.checkpoint(function, policy=REMAT[current().remat], prevent_cse=not in_scan)
