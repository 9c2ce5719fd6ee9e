"""LoRA (arXiv 2106.09685): a frozen kernel W [in, out] answers as W + A B, with A [in, r] and B [r, out] trained.

Adapters are parameters beside the kernel, `.../lora_a` and `.../lora_b`; a layer that finds them uses them. There is no
alpha: alpha / r multiplies A B, which under Adam is the same as multiplying B's learning rate.
"""

from __future__ import annotations

from typing import Any, Mapping

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

KERNEL, A, B = "/kernel", "/lora_a", "/lora_b"


def adapters(params: Any, ranks: Mapping[str, int], rng: Array) -> dict[str, Array]:
    """Fresh adapters by path for the kernels at the paths of `ranks`: A is drawn from N(0, 1 / in), B is 0, so that
    nothing changes before the first step. Leading axes (layers) are those of the kernel.

    Raises ValueError for a path that is no kernel.
    """
    flat, fresh = traverse_util.flatten_dict(params, sep="/"), {}
    for path, rank in ranks.items():
        if not path.endswith(KERNEL):
            raise ValueError(f"LoRA adapts dense layers, and '{path}' is not the kernel of one; change the stage's lora "
                             f"rules.")
        *lead, wide, out = flat[path].shape
        stem, rng = path.removesuffix(KERNEL), jax.random.fold_in(rng, len(fresh))
        fresh[stem + A] = jax.random.normal(rng, (*lead, wide, rank)) * wide**-0.5
        fresh[stem + B] = jnp.zeros((*lead, rank, out))
    return fresh


def is_adapter(path: str) -> bool:
    return path.endswith((A, B))


def merge(params: Any) -> Any:
    """The tree without adapters that answers as the tree with them."""
    flat = traverse_util.flatten_dict(params, sep="/")
    merged = {path: leaf for path, leaf in flat.items() if not is_adapter(path)}
    for path, a in flat.items():
        if path.endswith(A):
            stem = path.removesuffix(A)
            kernel = flat[stem + KERNEL]
            delta = jnp.matmul(a, flat[stem + B], preferred_element_type=jnp.float32)
            merged[stem + KERNEL] = (kernel + delta).astype(kernel.dtype)
    return traverse_util.unflatten_dict(merged, sep="/")
