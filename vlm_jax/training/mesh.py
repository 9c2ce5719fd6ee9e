"""The mesh, and how a batch lies on it. One device is a mesh of one: there is no other code path."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

AXES = ("data", "fsdp", "tensor", "context")
BATCH_AXES = ("data", "fsdp")
AnyMesh = Mesh | AbstractMesh  # an abstract one has shapes and no devices: what is planned, not run


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one axis may be -1, which takes what is left.

    `data` repeats the parameters, `fsdp` splits them, and both split the batch; `tensor` splits heads, hidden units and
    the vocabulary; `context` splits the tokens of a row.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def shape(self, devices: int) -> tuple[int, ...]:
        """Sizes in the order of AXES; raises where they do not multiply to the number of devices."""
        sizes = [getattr(self, axis) for axis in AXES]
        if sizes.count(-1) > 1:
            raise ValueError("Only one mesh axis may be -1.")
        known = math.prod(size for size in sizes if size != -1)
        if known < 1 or min(sizes) < -1 or devices % known or (-1 not in sizes and known != devices):
            raise ValueError(f"The mesh {dict(zip(AXES, sizes))} does not fit {devices} devices; change config.mesh.")
        return tuple(devices // known if size == -1 else size for size in sizes)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices (or those given); raises where the axes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    return Mesh(arrange(config.shape(len(devices)), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The same mesh of that many devices that are not here, to plan on."""
    return AbstractMesh(config.shape(devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the order in which the axes should talk to each other: neighbours on the last axes.

    Devices of several slices (a TPU multi-slice job) lie on `data`, whose one gradient sum a step is all that crosses
    the slow network between them; raises where they cannot.
    """
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    if len(slices) == 1 or devices[0].platform != "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % len(slices):
        raise ValueError(f"config.mesh.data is {shape[0]}; with {len(slices)} slices it must be a multiple of them.")
    inner = (shape[0] // len(slices), *shape[1:])
    return np.concatenate([mesh_utils.create_device_mesh(inner, slices[key], allow_split_physical_axes=True)
                           for key in sorted(slices)])


def batch_parts(mesh: AnyMesh) -> int:
    """Devices along which a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Batches are split along their first axis."""
    return NamedSharding(mesh, jax.P(BATCH_AXES))


def check_batch(size: int, mesh: AnyMesh, microbatches: int = 1) -> None:
    """Raises where a batch does not split evenly over the devices, in each of its microbatches."""
    parts = batch_parts(mesh)
    if size % (parts * microbatches):
        each = f" in {microbatches} microbatches" if microbatches > 1 else ""
        raise ValueError(f"A batch of {size} does not divide by the {parts} devices it is split over{each}; "
                         f"use a multiple of {parts * microbatches}.")


def check_rows(length: int, mesh: AnyMesh) -> None:
    """Raises where rows of tokens do not split evenly along `context`."""
    if length % mesh.shape["context"]:
        raise ValueError(f"Rows of {length} tokens do not divide by config.mesh.context={mesh.shape['context']}; use a "
                         f"length that is a multiple of it.")


def host_rows(size: int, mesh: Mesh, devices: Sequence[jax.Device] | None = None) -> list[int]:
    """The rows of a global batch that a process's devices hold (None: this one's), ascending: what `put_batch` takes.

    Devices along `tensor` and `context` hold the same rows, also where they belong to other processes.
    """
    held = batch_sharding(mesh).devices_indices_map((size,))
    own = mesh.local_devices if devices is None else devices
    return sorted({row for device in own for row in range(*held[device][0].indices(size))})


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays to global device arrays."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
