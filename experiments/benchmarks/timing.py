"""Paired timing: the two sides run in turn in one process, and medians are compared, because machines are noisy."""

from __future__ import annotations

import statistics
import time
from typing import Any, Callable

import jax

Row = dict[str, Any]


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call, until its arrays are there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def paired(ours: Callable[[], Any], peer: Callable[[], Any], runs: int = 11) -> Row:
    """Medians of interleaved runs after a warm-up of both; ratio above 1 means that ours is faster."""
    seconds(ours), seconds(peer)
    times = [(seconds(ours), seconds(peer)) for _ in range(runs)]
    mine, theirs = (statistics.median(side) for side in zip(*times))
    return {"ours": mine, "peer": theirs, "ratio": theirs / mine, "runs": runs}
