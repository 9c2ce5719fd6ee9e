"""What ends a run before its last step: a notice from the scheduler, a hang, a loss that is not finite."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
from typing import Any, Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlm_jax.training.cluster import on_all

RESTART = 75  # exit code (EX_TEMPFAIL): the run was asked to stop and has saved; the same command goes on
STDERR = 2  # a file descriptor: usable when everything above it is stuck


class Notice:
    """SIGTERM, by which schedulers announce that a machine will be taken away. For the time of a `with`."""

    def __init__(self):
        self._told, self._before = False, None

    def __enter__(self) -> Notice:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, *_) -> None:
        self._told = True
        signal.signal(signal.SIGTERM, self._before)  # who asks twice will not wait

    def reached(self, number: int) -> bool:
        """Whether to stop after step `number` of the run; to be called after every step.

        Of several processes any may be told; all stop after the same step, which JAX agrees on.
        """
        if jax.process_count() == 1:
            return self._told
        return multihost_utils.reached_preemption_sync_point(number)


@contextlib.contextmanager
def watchdog(seconds: int) -> Iterator[Callable[[], None]]:
    """Gives a function to call at every sign of life. Where there is none for `seconds`, the stacks of all threads are
    printed and the process ends with exit code 1; 0 waits for ever.

    A process that hangs in a collective cannot be interrupted from within, and on a pod nobody is looking.
    """
    def alive() -> None:
        if seconds:
            faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)

    alive()
    try:
        yield alive
    finally:
        if seconds:
            faulthandler.cancel_dump_traceback_later()


class Finite:
    """Looks whether the loss and the gradients of each step are finite. `train_step` does not apply the update of one
    where they are not.

    Raises ValueError at the first such step, or with `skips` at the one after that many in a row.
    """

    def __init__(self, skips: int, remedy: Callable[[int], str]):
        self.skips, self.remedy = skips, remedy
        self.row = 0  # such steps, one after the other
        self.skipped = 0  # since `lap`
        self._pending: tuple[int, Mapping[str, Any]] | None = None

    def watch(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a step that may still be running."""
        self._pending = (step, metrics)

    def settle(self) -> None:
        """Waits for that step and looks at it."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        if all(np.isfinite(metrics[name]) for name in ("loss", "grad_norm")):
            self.row = 0
            return
        self.row += 1
        self.skipped += 1
        if self.row > self.skips:
            on_all(lambda: self._stop(step))  # all see the same figures, and end together

    def _stop(self, step: int) -> None:
        raise ValueError(self.remedy(step))

    def lap(self) -> int:
        """How many updates were skipped since the last lap."""
        skipped, self.skipped = self.skipped, 0
        return skipped
