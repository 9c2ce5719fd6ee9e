"""Which record comes when: sources mixed by weight, shuffled anew in each epoch: a function of (config, seed, place).

A place in the order holds a pair (part, index): which source, and which of its records. Nothing is read here.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from typing import ClassVar, Mapping

import grain
import numpy as np

from vlm_jax.data.records import Source
from vlm_jax.data.registry import SourceConfig, open_source

Place = tuple[int, int]  # the number of the part, and an index of its source


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of a mixture.

    `weight`: its share of the examples, relative to the other parts'. `epochs` instead: how often it is read while the
    others are read as often as theirs say, so that all parts are used up together. All parts have the one or the other.
    `select`: "all", "first:N" (records), or "random:N%" (always the same ones, whatever the seed).
    """

    source: SourceConfig
    weight: float | None = None
    epochs: float | None = None
    select: str = "all"

    def __post_init__(self):
        given = [value for value in (self.weight, self.epochs) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ValueError(f"A part of a mixture has a weight or a number of epochs above 0, one of the two; this "
                             f"has weight={self.weight}, epochs={self.epochs}.")
        selected(1, self.select)


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """Several sources under names of their own; image and text rows may mix."""

    kind: ClassVar[str] = "mixture"
    parts: Mapping[str, Part]

    def __post_init__(self):
        if len({part.weight is None for part in self.parts.values()}) != 1:
            raise ValueError("The parts of a mixture all have weights or all have epochs; make them alike.")


@dataclasses.dataclass(frozen=True)
class OpenPart:
    """A part ready to be read: `indices` are the selected ones of its source, `share` its share of the examples."""

    name: str
    source: Source
    indices: Selected
    share: float


def open_parts(config: SourceConfig | MixtureConfig, keep_bad: bool = False) -> list[OpenPart]:
    """The parts of a mixture, or a single source as the only one, called by its kind; raises where one is empty."""
    if not isinstance(config, MixtureConfig):
        source = open_source(config, keep_bad)
        return [OpenPart(config.kind, source, selected(len(source), "all"), 1.0)]
    opened = {name: open_source(part.source, keep_bad) for name, part in config.parts.items()}
    indices = {name: selected(len(opened[name]), part.select) for name, part in config.parts.items()}
    weights = {name: part.epochs * len(indices[name]) if part.weight is None else part.weight
               for name, part in config.parts.items()}
    total = sum(weights.values())
    return [OpenPart(name, opened[name], indices[name], weights[name] / total) for name in config.parts]


class Selected:
    """The first `count` indices below `size`, in their own order or in one that looks random but never changes."""

    def __init__(self, size: int, count: int, shuffled: bool):
        everything = grain.MapDataset.range(size)  # shuffled, it computes each index and stores none
        self._count, self._indices = min(count, size), everything.shuffle(seed=0) if shuffled else everything

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self._count:
            raise IndexError(f"place {place} is outside 0..{self._count - 1}")
        return int(self._indices[place])


def selected(size: int, select: str) -> Selected:
    """The indices below `size` that a selection means; at least one of them, where there is one."""
    first, share = re.fullmatch(r"first:(\d+)", select), re.fullmatch(r"random:(\d+(?:\.\d+)?)%", select)
    if first and int(first[1]):
        return Selected(size, int(first[1]), False)
    if share and 0 < float(share[1]) <= 100:
        return Selected(size, max(round(size * float(share[1]) / 100), 1), True)
    if select != "all":
        raise ValueError(f"The selection {select!r} is unknown; write 'all', 'first:N', or 'random:N%' with N above 0.")
    return Selected(size, size, False)


def order(parts: list[OpenPart], seed: int) -> grain.MapDataset:
    """The endless order of places. Each part is shuffled by itself, so that an epoch of it holds each record once."""
    if len(parts) == 1:
        return _endless(parts[0], 0, seed)
    seeds = [np.random.SeedSequence([seed, zlib.crc32(part.name.encode())]).generate_state(1)[0] for part in parts]
    return grain.MapDataset.mix([_endless(part, n, int(s)) for n, (part, s) in enumerate(zip(parts, seeds))],
                                [part.share for part in parts])


def _endless(part: OpenPart, number: int, seed: int) -> grain.MapDataset:
    places = grain.MapDataset.source(part.indices).map(lambda index: (number, index))
    return places.seed(seed).shuffle().repeat(reseed_each_epoch=True)


def epochs(parts: list[OpenPart], examples: int) -> dict[str, float]:
    """How often each part is read in that many examples."""
    return {part.name: examples * part.share / len(part.indices) for part in parts}
