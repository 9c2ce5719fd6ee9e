"""Parameters and optimizer state at rest: every call to Orbax stands in this file."""

from __future__ import annotations

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers as policies

from vlm_jax.models.lora import is_adapter, merge

FOLDER, ASIDE = "checkpoints", "unreadable-checkpoints"


class Unreadable(ValueError):
    """A checkpoint is not what was written. `path`: its folder."""

    def __init__(self, path: epath.Path, reason: str):
        super().__init__(f"The checkpoint {path} cannot be read ({reason}); restore it from a copy, or move that "
                         f"folder away to go on from the one before.")
        self.path, self.reason = path, reason


class Checkpoints:
    """The checkpoints of a workdir, by number of steps done over all stages; saving goes on in the background.

    Each holds three items that can be read apart: `params`, `opt_state`, and `meta` (JSON: stage, step in the stage).
    """

    def __init__(self, workdir: epath.PathLike, keep: int = 2, read_only: bool = False):
        self.path = epath.Path(workdir) / FOLDER
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(keep), enable_async_checkpointing=True, cleanup_tmp_directories=True,
            read_only=read_only)  # a reader must not sweep away what a running training is writing
        handlers = {"params": ocp.StandardCheckpointHandler(), "opt_state": ocp.StandardCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.path.resolve(), options=options, item_handlers=handlers)

    def save(self, number: int, params: Any, opt_state: Any | None, meta: dict[str, Any]) -> None:
        """Parameters that no run of ours trained have no optimizer state."""
        state = {} if opt_state is None else {"opt_state": ocp.args.StandardSave(opt_state)}
        self._manager.save(number, args=ocp.args.Composite(
            params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave(meta), **state))

    def latest(self) -> int | None:
        """Number of the newest complete checkpoint."""
        return self._manager.latest_step()

    def numbers(self) -> list[int]:
        """Numbers of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def set_aside(self, number: int) -> epath.Path:
        """Moves a checkpoint to a folder beside the others, where nothing looks for it, and returns its new path."""
        folder = self.path.parent / ASIDE
        folder.mkdir(exist_ok=True)
        target = folder / f"{number}-{len(list(folder.iterdir()))}"
        return (self.path / str(number)).rename(target)

    def reload(self) -> None:
        """Looks again which checkpoints there are."""
        self._manager.reload()

    def meta(self, number: int) -> dict[str, Any]:
        return self._restore(number, meta=ocp.args.JsonRestore())["meta"]

    def params(self, number: int, abstract: Any) -> Any:
        """Parameters with the shapes, dtypes and shardings of `abstract`, a tree of jax.ShapeDtypeStruct.

        Adapters of an unfinished LoRA stage that `abstract` does not ask for are merged into their kernels.
        """
        wanted, saved = (traverse_util.flatten_dict(tree, sep="/") for tree in (abstract, self._saved(number)))
        beside = {path: leaf for path, leaf in saved.items() if is_adapter(path) and path not in wanted}
        for path, leaf in beside.items():
            place = getattr(wanted[path.rsplit("/", 1)[0] + "/kernel"], "sharding", None)
            if isinstance(place, jax.NamedSharding):  # adapters are small: whole on every device
                place = jax.NamedSharding(place.mesh, jax.P())
            wanted[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        abstract = traverse_util.unflatten_dict(wanted, sep="/") if beside else abstract
        params = self._restore(number, params=ocp.args.StandardRestore(abstract))["params"]
        return merge(params) if beside else params

    def opt_state(self, number: int, abstract: Any) -> Any:
        return self._restore(number, opt_state=ocp.args.StandardRestore(abstract))["opt_state"]

    def shapes(self, number: int) -> Any:
        """The tree of `params`, adapters merged, as jax.ShapeDtypeStruct, without reading any values."""
        return jax.eval_shape(merge, self._saved(number))

    def _saved(self, number: int) -> Any:
        meta = self._guard(number, lambda: self._manager.item_metadata(number)["params"].tree)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), meta)

    def wait(self) -> None:
        """Returns once everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _restore(self, number: int, **args):
        return self._guard(number, lambda: self._manager.restore(number, args=ocp.args.Composite(**args)))

    def _guard(self, number: int, read):
        try:
            return read()
        except Exception as error:  # tensorstore, JSON and file errors alike: the folder is not what was written
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise Unreadable(self.path / str(number), reason) from error


def open_existing(workdir: epath.PathLike) -> tuple[Checkpoints, int]:
    """The checkpoints of a trained workdir and the number of the newest."""
    folder = epath.Path(workdir) / FOLDER
    if not folder.exists() and any(epath.Path(workdir).glob("*.safetensors")):
        raise FileNotFoundError(f"{workdir} is in Hugging Face layout; make a folder to start from of it with "
                                f"python -m vlm_jax.convert import {workdir} OUT.")
    if not folder.exists():
        raise FileNotFoundError(f"{workdir} has no {FOLDER}/; give the workdir of a training run.")
    checkpoints = Checkpoints(workdir, read_only=True)
    number = checkpoints.latest()
    if number is None:
        raise FileNotFoundError(f"{folder} holds no complete checkpoint; let the training run reach one.")
    return checkpoints, number
