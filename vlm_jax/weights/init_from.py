"""Starting a stage from weights at rest: another run's, `init_from = "WORKDIR"` or `"WORKDIR:vision,connector"`, or a
connector in a file of its own, `"mm_projector.safetensors"`."""

from __future__ import annotations

from typing import Any

import jax

from vlm_jax.weights.checkpoints import open_existing
from vlm_jax.weights.huggingface import projector


def load_into(params: Any, init_from: str) -> Any:
    """`params` with the subtrees that `init_from` names (all that both trees have, if it names none) replaced.

    Strict: a named subtree must be on both sides, with the same leaves and shapes; the error lists what differs.
    Values land with the shardings of the leaves they replace. A file replaces `connector` (see `projector.load`).
    """
    if projector.is_file(_split(init_from)[0]):
        return {**params, "connector": _connector(params, init_from)}
    checkpoints, number = open_existing(_split(init_from)[0])
    with checkpoints:
        saved = checkpoints.shapes(number)
        names = _agreed(saved, params, init_from)
        wanted = {**saved, **{name: params[name] for name in names}}
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf)), wanted)
        loaded = checkpoints.params(number, abstract)
    return {**params, **{name: loaded[name] for name in names}}


def check(params: Any, init_from: str) -> list[str]:
    """The subtrees `load_into` would replace; raises what it would, without reading a run's values."""
    if projector.is_file(_split(init_from)[0]):
        _connector(params, init_from)
        return ["connector"]
    checkpoints, number = open_existing(_split(init_from)[0])
    with checkpoints:
        return _agreed(checkpoints.shapes(number), params, init_from)


def _connector(params: Any, init_from: str) -> Any:
    """The connector of a file."""
    file, names = _split(init_from)
    if "connector" not in params or names not in ([], ["connector"]):
        raise ValueError(f"init_from '{init_from}': a file holds a connector alone; this model has "
                         f"{', '.join(sorted(params))}.")
    return projector.load(file, params["connector"])


def _agreed(saved: Any, params: Any, init_from: str) -> list[str]:
    """The subtrees to take, after a look at whether both sides have them alike."""
    workdir, names = _split(init_from)
    names = names or sorted(set(saved) & set(params))
    unknown = [name for name in names if name not in saved or name not in params]
    if unknown or not names:
        raise ValueError(f"init_from '{init_from}': {', '.join(unknown) or 'nothing'} is not in both trees; "
                         f"{workdir} has {', '.join(sorted(saved))}, this model {', '.join(sorted(params))}.")
    for name in names:
        _compare(name, saved[name], params[name], init_from)
    return names


def _split(init_from: str) -> tuple[str, list[str]]:
    head, _, tail = init_from.rpartition(":")
    if head and "/" not in tail:  # a colon before a slash belongs to the path (gs://...)
        return head, [name.strip() for name in tail.split(",")]
    return init_from, []


def _sharding(leaf):
    """Subtrees that are read only to be dropped land on the first device."""
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _compare(name: str, saved: Any, wanted: Any, init_from: str) -> None:
    paths = lambda tree: {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
                          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    saved, wanted = paths(saved), paths(wanted)
    if saved != wanted:
        missing = sorted(set(wanted) - set(saved))
        unused = sorted(set(saved) - set(wanted))
        shapes = [f"{p} {saved[p]} here {wanted[p]}" for p in sorted(set(saved) & set(wanted)) if saved[p] != wanted[p]]
        raise ValueError(f"init_from '{init_from}': '{name}' differs; missing: {missing or 'none'}, "
                         f"unused: {unused or 'none'}, other shapes: {shapes or 'none'}.")
