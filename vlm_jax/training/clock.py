"""What a log line says of speed: time, tokens, MFU, waiting and memory."""

from __future__ import annotations

import resource
import sys
import time
from typing import Callable, Iterator

import jax

from vlm_jax.data.pipeline import Batch


class Clock:
    """Times the steps between two log lines. `batch` is the size of the global batch, of which this host's part is seen;
    `flops` gives the model FLOPs of such a part (`flops.step_flops`), `peak` those that all devices could
    do in a second (None: unknown); `padding` is the id that fills the rows of a text tower."""

    def __init__(self, batch: int, flops: Callable[[Batch], float] | None = None, peak: float | None = None,
                 padding: int | None = None):
        self.batch, self.flops, self.peak, self.padding = batch, flops, peak, padding
        self.since = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self.waited, self.steps, self.tokens, self.slots, self.work = 0.0, 0, 0, 0, 0.0

    def next(self, data: Iterator[Batch]) -> Batch:
        """The next batch, and the time it took to come."""
        start = time.monotonic()
        batch = next(data)
        self.waited += time.monotonic() - start
        self.steps += 1
        real, slots, rows = tokens(batch, self.padding)
        if self.flops is not None:
            self.work += self.flops(batch) * self.batch / rows
        self.tokens += real * self.batch / rows  # the other hosts' rows are taken to be as full
        self.slots += slots * self.batch / rows
        return batch

    def lap(self) -> dict[str, float]:
        """Figures since the last lap; a stage's first lap is its first step, compilation included.

        step_s; examples_per_s; tokens_per_s of all token places, real_tokens_per_s without padding, `utilisation` their
        ratio; mfu as `flops.py` defines it; data_wait, the share of the time spent waiting for data; memory_gib, the most
        that a device of this host has held so far.
        """
        now = time.monotonic()
        seconds = max(now - self.since, 1e-9)
        figures = {"examples_per_s": self.batch * self.steps / seconds, "step_s": seconds / max(self.steps, 1),
                   "data_wait": self.waited / seconds}
        if self.slots:
            figures |= {"tokens_per_s": self.slots / seconds, "real_tokens_per_s": self.tokens / seconds,
                        "utilisation": self.tokens / self.slots}
        if self.flops is not None:
            figures |= {"mfu": self.work / seconds / self.peak if self.peak else None, "memory_gib": device_memory() / 2**30}
        self.since = now
        self._reset()
        return figures


def tokens(batch: Batch, padding: int | None) -> tuple[int, int, int]:
    """(real tokens, token places, rows) of a batch: of the decoder, or of the text tower where there is none."""
    if "segment_ids" in batch:
        return int((batch["segment_ids"] >= 0).sum()), batch["segment_ids"].size, len(batch["segment_ids"])
    if "text" in batch:
        return int((batch["text"] != padding).sum()), batch["text"].size, len(batch["text"])
    return 0, 0, len(next(iter(batch.values())))


def device_memory() -> int:
    """The most bytes that a device of this process has held; of a CPU, which does not tell, the process's own."""
    told = [device.memory_stats() for device in jax.local_devices()]
    if all(told):
        return max(stats["peak_bytes_in_use"] for stats in told)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
