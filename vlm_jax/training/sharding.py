"""The mesh and who lives where on it. One device is a mesh of one: there is no other code path."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor", "context")
BATCH_AXES = ("data", "fsdp")
SMALLEST_SHARDED = 2**18  # values; splitting a smaller leaf costs more in latency than it saves in memory


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one axis may be -1, which takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """A mesh of all devices (or those given); raises where the axes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1:
        raise ValueError("Only one mesh axis may be -1.")
    known = math.prod(size for size in sizes if size != -1)
    if known < 1 or min(sizes) < -1 or len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise ValueError(f"The mesh {dict(zip(AXES, sizes))} does not fit {len(devices)} devices; change config.mesh.")
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def leaf_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where one parameter (or optimizer moment) lives: its largest dimension that divides is split over `fsdp`."""
    parts = mesh.shape["fsdp"]
    if parts == 1 or math.prod(shape) < SMALLEST_SHARDED:
        return PartitionSpec()
    for axis in sorted(range(len(shape)), key=lambda i: -shape[i]):
        if shape[axis] % parts == 0:
            return PartitionSpec(*(None,) * axis, "fsdp")
    raise ValueError(f"No dimension of a parameter of shape {shape} divides by fsdp={parts}; change config.mesh.fsdp.")


def state_shardings(abstract: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of an abstract state."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, leaf_spec(leaf.shape, mesh)), abstract)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split along their first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(size: int, mesh: Mesh) -> None:
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if size % parts:
        raise ValueError(f"A batch of {size} does not divide by the {parts} devices it is split over; "
                         f"use a multiple of {parts}.")


def host_rows(size: int, mesh: Mesh) -> list[int]:
    """The rows of a global batch that this process's devices hold, ascending: what `put_batch` takes on this process.

    Devices along `tensor` and `context` hold the same rows, also where they belong to other processes.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return sorted({row for (rows,) in held for row in range(*rows.indices(size))})


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays to global device arrays."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
