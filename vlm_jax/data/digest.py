"""What a pipeline really delivers, as one hash: the same on any number of hosts and workers, or a run is not exact."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from vlm_jax.data.pipeline import DataConfig, read, traced
from vlm_jax.data.processor import Processor


def origins(config: DataConfig, processor: Processor, seed: int, start: int, stop: int, hosts: int = 1) -> np.ndarray:
    """[steps, batch, examples, 2] int64: the [part, index] of every example of a row, in global batch order; -1 where a
    row has no further example.

    Each of `hosts` simulated hosts reads its own block of rows, by the config's workers.
    """
    if config.batch % hosts:
        raise ValueError(f"A batch of {config.batch} does not divide among {hosts} hosts; give a divisor.")
    size = config.batch // hosts
    parts = []
    for host in range(hosts):
        own = traced(config, processor, seed, range(host * size, (host + 1) * size))
        parts.append(np.stack([batch["origin"] for batch in read(own, start, stop, config.workers)]))
    found = np.concatenate(parts, axis=1)
    return found.reshape(*found.shape[:2], -1, 2)


def digest(config: DataConfig, processor: Processor, seed: int, start: int, stop: int, hosts: int = 1,
           workers: int = 0) -> str:
    """sha256 over one line `source:index` for each example of steps start to stop - 1, in global batch order."""
    names = [part.name for part in config.open()]
    config = dataclasses.replace(config, workers=workers)
    found = origins(config, processor, seed, start, stop, hosts).reshape(-1, 2)
    lines = (f"{names[part]}:{index}\n" for part, index in found.tolist() if part >= 0)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
