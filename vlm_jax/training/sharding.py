"""Who lives where on the mesh: parameters and optimizer state by the names of their dimensions.

A rule lists, for one mesh axis, the dimensions it may split, best first. The first one that a leaf has and that
divides is taken; a leaf with none of these dimensions is not asked; a leaf that has some, none of which divides, is
an error, unless the rule ends with WHOLE. A dimension is split by one axis only.
"""

from __future__ import annotations

from typing import Any, Mapping

import jax
from jax.sharding import NamedSharding, PartitionSpec

from vlm_jax.models.axes import PARAMETERS, parameter_axes
from vlm_jax.training.mesh import AnyMesh

WHOLE = "whole"  # a leaf may stay whole along this axis: counted, and limited by REPLICATED
RULES = {
    "tensor": ("mlp", "heads", "vocab", WHOLE),
    "fsdp": ("embed", "in", "out", "vocab", "pixels", "heads", "mlp", "positions"),
}
NAMES = {"layers", WHOLE} | {name for _, names in PARAMETERS for name in names}
SMALLEST_SHARDED = 2**20  # bytes; splitting a smaller leaf costs more in latency than it saves in memory
REPLICATED = 0.02  # share of the bytes that a rule asked to split and that may stay whole

Rules = Mapping[str, tuple[str, ...]]


def leaf_spec(path: str, leaf: Any, mesh: AnyMesh, rules: Rules = RULES) -> tuple[PartitionSpec, list[str]]:
    """Where one parameter (an array or its shape and dtype) lives, and the mesh axes whose rule it does not honour.

    Raises ValueError for a rule that names no known dimension, and where none of those it lists divides.
    """
    active = {axis: rule for axis, rule in rules.items() if mesh.shape[axis] > 1}
    for axis, rule in active.items():
        for name in rule:
            if name not in NAMES:
                raise ValueError(f"The rule of mesh axis '{axis}' names an unknown dimension, '{name}'; choose from "
                                 f"{', '.join(sorted(NAMES))}.")
    if not active or leaf.size * leaf.dtype.itemsize < SMALLEST_SHARDED:
        return PartitionSpec(), []
    names, spec, missed = parameter_axes(path, leaf.ndim), [None] * leaf.ndim, []
    for axis, rule in active.items():
        asked = [names.index(name) for name in rule if name in names and spec[names.index(name)] is None]
        fits = [i for i in asked if leaf.shape[i] % mesh.shape[axis] == 0]
        if fits:
            spec[fits[0]] = axis
        elif asked and WHOLE in rule:
            missed.append(axis)
        elif asked:
            sizes = ", ".join(f"{names[i]} {leaf.shape[i]}" for i in asked)
            raise ValueError(f"No dimension of '{path}' divides by {axis}={mesh.shape[axis]} ({sizes}); "
                             f"change config.mesh.{axis}.")
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec), missed


def state_shardings(abstract: Any, mesh: AnyMesh, rules: Rules = RULES) -> Any:
    """A NamedSharding for every leaf of an abstract state (or tree of parameters).

    Raises ValueError where a leaf cannot be split as its rule asks, and where more than REPLICATED of the bytes that
    rules ask to split would stay whole: a mesh that looks sharded and is not.
    """
    asked, whole, shapes = 0, {}, {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        if len(_keys(key_path)) > 1:
            shapes["/".join(_keys(key_path))] = leaf.shape

    def place(key_path, leaf):
        nonlocal asked
        path = "/".join(_keys(key_path))
        if shapes.get(path, leaf.shape) != leaf.shape:  # a factor of a moment (adafactor): small
            return NamedSharding(mesh, PartitionSpec())
        spec, missed = leaf_spec(path, leaf, mesh, rules)
        size = leaf.size * leaf.dtype.itemsize
        if missed:
            whole[path] = size
        asked += size if missed or any(spec) else 0
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(place, abstract)
    if sum(whole.values()) > REPLICATED * asked:
        largest = max(whole, key=whole.get)
        raise ValueError(f"{sum(whole.values()) / asked:.0%} of the parameter bytes that should be split would stay "
                         f"whole, '{largest}' most of all; change config.mesh ({dict(mesh.shape)}).")
    return shardings


def _keys(key_path: tuple) -> list[str]:
    """The dictionary keys on the way to a leaf: of a parameter its path in parts, of a moment one key, that path."""
    return [key.key for key in key_path if isinstance(key, jax.tree_util.DictKey)]


def table(abstract: Any, mesh: AnyMesh) -> str:
    """One line a parameter: path, shape, names of the dimensions, and the mesh axis that splits each."""
    lines, placed = [], jax.tree.leaves(state_shardings(abstract, mesh))
    for (key_path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(abstract), placed, strict=True):
        path = "/".join(_keys(key_path))
        columns = leaf.shape, parameter_axes(path, leaf.ndim), (axis or "-" for axis in sharding.spec)
        lines.append(" | ".join([path, *(",".join(map(str, column)) for column in columns)]).rstrip() + "\n")
    return "".join(sorted(lines))
