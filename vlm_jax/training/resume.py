"""Going on from a checkpoint: the newest that every process can read."""

from __future__ import annotations

from typing import Callable, TypeVar

from etils import epath

from vlm_jax.training.cluster import on_all, on_first, say
from vlm_jax.weights.checkpoints import Checkpoints, Unreadable

T = TypeVar("T")


def from_newest(checkpoints: Checkpoints, go_on: Callable[[int | None], T]) -> T:
    """go_on(number of the newest checkpoint, or None).

    Where it finds that checkpoint damaged and there is one before, the damaged one is moved aside, which is said, and
    the run goes on from the other: those steps are done again.
    """
    while True:
        numbers = on_first(checkpoints.numbers)
        try:
            return go_on(numbers[-1] if numbers else None)
        except Unreadable as error:
            if len(numbers) < 2 or error.path != checkpoints.path / str(numbers[-1]):
                raise
            moved = on_first(lambda: str(checkpoints.set_aside(numbers[-1])))
            checkpoints.reload()
            say(f"warning: the checkpoint {error.path} cannot be read ({error.reason}); it is now {moved}, and the run "
                f"goes on from checkpoint {numbers[-2]}.")


def read_together(read: Callable[[], T]) -> T:
    """What `read` makes of a checkpoint; raises Unreadable on every process where one could not read its part."""
    found, errors = [], []

    def attempt() -> list[str] | None:
        try:
            found.append(read())
        except Unreadable as error:
            errors.append(error)
            return [str(error.path), error.reason]

    failed = next(filter(None, on_all(attempt)), None)
    if errors:
        raise errors[0]
    if failed:
        raise Unreadable(epath.Path(failed[0]), failed[1])
    return found[0]
