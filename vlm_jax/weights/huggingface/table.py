"""Weight tables: one declarative list a family, read in both directions.

A row says where a tensor of ours lies (`decoder/blocks/attn/q/kernel`), what it is called in Hugging Face files
(`model.layers.{}.self_attn.q_proj.weight`, `{}` the layer), and in which form it is written there.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Callable, Iterator, Sequence

import jax
import numpy as np

from vlm_jax.weights.huggingface.safetensors import Reader

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Form:
    """How one layer's tensor is written there: both functions take and return NumPy arrays.

    `theirs` also takes the shape of the patch in `patch`, for forms that fold one into a matrix.
    """

    ours: Callable[[Array], Array]
    theirs: Callable[[Array, tuple[int, ...]], Array]


SAME = Form(lambda x: x, lambda x, _: x)
LINEAR = Form(lambda x: x.T, lambda x, _: x.T)  # torch: [out, in]
SCALAR = Form(lambda x: x.reshape(()), lambda x, shape: x.reshape(shape))
TOKEN = Form(lambda x: x.reshape(x.shape[-1]), lambda x, shape: x.reshape(shape))  # [1, 1, width] or [1, width]
FIRST = Form(lambda x: x[0], lambda x, _: x[None])  # [1, ...], an axis of the batch
# torch convolutions are [out, channel, height, width]; a patch is flattened row by row, channels fastest
PATCH = Form(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
             lambda x, shape: x.reshape(*shape, -1).transpose(3, 2, 0, 1))
# a convolution over patches that come flattened as torch lays them out: [out, channel, (frame,) height, width]
FLAT = Form(lambda x: x.reshape(len(x), -1).T, lambda x, shape: x.T.reshape(-1, *shape))


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row. `shape` is what `form.theirs` cannot know from our array alone: (height, width, channels) of a patch, or
    a patch's shape in FLAT.

    `part` (i, n) says that our array is the i-th of n equal parts of theirs, cut along its first axis (a fused qkv); the
    rows of all n parts stand together, in order. `copy` is another name under which files may hold the same tensor once
    more (the output layer of tied embeddings); it is never written. Layer i of ours is layer i * `step` of
    theirs, where only every so many have the tensor.
    """

    ours: str
    theirs: str
    form: Form = SAME
    shape: tuple[int, ...] = ()
    part: tuple[int, int] = (0, 1)
    copy: str | None = None
    step: int = 1

    @property
    def stacked(self) -> bool:
        return "{}" in self.theirs

    def names(self, layers: int) -> list[str]:
        return [self.theirs.format(i * self.step) for i in range(layers)] if self.stacked else [self.theirs]


def linear(ours: str, theirs: str, bias: bool = True) -> list[Weight]:
    """The two rows of a dense layer."""
    rows = [Weight(f"{ours}/kernel", f"{theirs}.weight", LINEAR)]
    return rows + [Weight(f"{ours}/bias", f"{theirs}.bias")] * bias


def norm(ours: str, theirs: str, bias: bool = True) -> list[Weight]:
    """The rows of a LayerNorm, or of an RMSNorm without bias."""
    return [Weight(f"{ours}/scale", f"{theirs}.weight")] + [Weight(f"{ours}/bias", f"{theirs}.bias")] * bias


def import_params(
    table: Sequence[Weight], reader: Reader, abstract: dict[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
    """Flat {path: array} of our parameters, read tensor by tensor and put where `abstract` says.

    Strict: every row must be in the files with the right shape, and every tensor of the files must be used; the error
    lists used, unused and missing names.
    """
    wanted = {name for row in table for name in row.names(_layers(row, abstract))}
    copies = {row.copy: row.theirs for row in table if row.copy in reader.names}
    missing, unused = sorted(wanted - reader.names), sorted(reader.names - wanted - set(copies))
    if missing or unused:
        used = sorted(wanted & reader.names)
        raise ValueError(f"The weights in {reader.folder} do not fit the model; used: {_listed(used)}, "
                         f"unused: {_listed(unused)}, missing: {_listed(missing)}.")
    for copy, name in copies.items():
        if not np.array_equal(reader.read(copy), reader.read(name)):
            raise ValueError(f"'{copy}' in {reader.folder} differs from '{name}', which the config ties it to; set "
                             f"tie_word_embeddings to false in config.json.")
    return {row.ours: _read(row, reader, abstract[row.ours]) for row in table}


def _layers(row: Weight, abstract: dict[str, jax.ShapeDtypeStruct]) -> int:
    return abstract[row.ours].shape[0] if row.stacked else 1


def _read(row: Weight, reader: Reader, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """The parameter on the devices that it is for: each gets its piece, filled tensor by tensor."""
    shape = leaf.shape[1:] if row.stacked else leaf.shape
    full = leaf.shape if row.stacked else (1, *shape)
    places = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    ranges = {device: _ranges(index if row.stacked else (slice(None), *index), full) for device, index in places.items()}
    pieces = {place: np.empty([stop - start for start, stop in place], leaf.dtype) for place in set(ranges.values())}
    for i, name in enumerate(row.names(full[0])):
        wanted = [place for place in pieces if place[0][0] <= i < place[0][1]]
        if not wanted:
            continue
        value = _formed(row, reader, name, shape)
        for place in wanted:
            pieces[place][i - place[0][0]] = value[tuple(slice(*ends) for ends in place[1:])]
    local = {place: piece if row.stacked else piece[0] for place, piece in pieces.items()}
    return jax.make_array_from_single_device_arrays(
        leaf.shape, leaf.sharding, [jax.device_put(local[place], device) for device, place in ranges.items()])


def _ranges(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(start, stop) along each axis."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape))


def _formed(row: Weight, reader: Reader, name: str, shape: tuple[int, ...]) -> Array:
    """One layer's tensor in our form."""
    try:
        value = row.form.ours(_part(reader.read(name), *row.part))
    except ValueError:  # of other rank than the form expects
        value = None
    if value is None or value.shape != shape:
        raise ValueError(f"'{name}' in {reader.folder} has shape {reader.shape(name)}; the config asks for "
                         f"{row.ours} of {shape}.")
    return value


def _part(value: Array, index: int, parts: int) -> Array:
    return value if parts == 1 else np.split(value, parts)[index]


def export_params(table: Sequence[Weight], flat: dict[str, Any]) -> Iterator[tuple[str, Array]]:
    """(name, tensor) in Hugging Face's form, one at a time; every parameter of ours must have a row."""
    left = sorted(set(flat) - {row.ours for row in table})
    if left:
        raise ValueError(f"Nothing is known of how to export {_listed(left)}.")
    for _, group in itertools.groupby(table, key=lambda row: row.theirs):
        rows = list(group)
        values = [np.asarray(flat[row.ours]) for row in rows]
        layers = len(values[0]) if rows[0].stacked else 1
        for i, name in enumerate(rows[0].names(layers)):
            parts = [row.form.theirs(value[i] if row.stacked else value, row.shape) for row, value in zip(rows, values)]
            yield name, np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts), order="C")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"
