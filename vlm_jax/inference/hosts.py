"""Computing over a mesh from host arrays that every process has, and back: `fetch(f(params, spread(batch)))`.

Both leave one process with one device as it is.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

ROWS = ("data", "fsdp")  # mesh axes along which a batch is split


def spread(batch: Any) -> Any:
    """Host arrays with the rows first, which all processes have alike, cut over the mesh that `jax.set_mesh` set.

    Where rows do not divide, or there is no such mesh, they stay whole: each device then computes them all.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty or not set(ROWS) <= set(mesh.axis_names):
        return batch
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    cut = jax.NamedSharding(mesh, jax.P(ROWS))
    whole = jax.NamedSharding(mesh, jax.P())
    put = lambda x: jax.make_array_from_callback(x.shape, whole if x.shape[0] % parts else cut, lambda at: x[at])
    return jax.tree.map(put, batch)


def fetch(array: Any) -> np.ndarray:
    """A device array, whole, on every process. Parts that other processes hold are sent to all."""
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
