"""Reading examples where some records are bad: those are counted, named and replaced, up to a share.

The replacement is drawn from the same source by (seed, index) alone: whoever reads the place, and however often, finds
the same substitute there, and no other place moves.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Callable

import numpy as np

from vlm_jax.data.mixture import OpenPart, Place
from vlm_jax.data.records import Record

TRIES = 100  # substitutes in a row: where all of them are bad, so is the source
FIRST = 1000  # records: the share is not judged by fewer, where the source has as many
NAMED = 20  # bad records that are named one by one; beyond them only the count is shown now and then


class Reader:
    """Makes examples of places: `make(record, rng)`, and under `origin` the place that was really read, int64 [2]."""

    def __init__(self, parts: list[OpenPart], make: Callable[[Record, np.random.Generator], dict[str, Any]], seed: int,
                 bad_share: float):
        self.parts, self.make, self.seed = parts, make, seed
        self.tally = Tally(bad_share, [len(part.indices) for part in parts])

    def __call__(self, place: Place, rng: np.random.Generator) -> dict[str, Any]:
        """Raises ValueError or OSError, naming the record, once more are bad than may be."""
        return self.first_good(place, lambda record: self.make(record, rng))

    def first_good(self, place: Place, make: Callable[[Record], dict[str, Any] | None],
                   count: bool = True) -> dict[str, Any] | None:
        """What `make` makes of the record of the place, or of its first substitute that can be read.

        Where `make` returns None the next substitute is tried as well, and None is returned when there are no more.
        With `count` False nothing is tallied: the place will be read once more.
        """
        last, refused = None, False
        for attempt in range(TRIES):
            part, index = self.substitute(place, attempt)
            try:
                made = make(self.parts[part].source[index])
            except (ValueError, OSError) as error:
                self.tally.bad(part, index, error, count)
                last = error
                continue
            if made is not None:
                self.tally.good(part, count)
                return {**made, "origin": np.array([part, index], np.int64)}
            refused = True
        if refused:
            return None
        raise ValueError(f"{TRIES} substitutes in a row for record {place[1]} of '{self.parts[place[0]].name}' cannot "
                         f"be read; check the source") from last

    def substitute(self, place: Place, attempt: int) -> Place:
        """What is tried in a place at the given attempt: first the place itself."""
        part, index = int(place[0]), int(place[1])
        if not attempt:
            return part, index
        indices = self.parts[part].indices
        rng = np.random.default_rng([self.seed, part, index, attempt])
        return part, indices[int(rng.integers(len(indices)))]


class Readable:
    """The selected records of a part as a source without bad ones: substitutes stand in their places."""

    def __init__(self, part: OpenPart, bad_share: float):
        self._part = part
        self._reader = Reader([part], lambda record, rng: {"record": record}, 0, bad_share)

    def __len__(self) -> int:
        return len(self._part.indices)

    def __getitem__(self, index: int) -> Record:
        return self._reader((0, self._part.indices[index]), None)["record"]


class Tally:
    """Counts what was read, in each process for itself, and raises where more than the share of it was bad."""

    def __init__(self, share: float, sizes: list[int]):
        self.share, self.sizes = share, sizes
        self.read, self.faults, self.known = [0] * len(sizes), [0] * len(sizes), set()
        self._lock = threading.Lock()

    def __reduce__(self):
        return Tally, (self.share, self.sizes)

    def good(self, part: int, count: bool = True) -> None:
        with self._lock:
            self.read[part] += count

    def bad(self, part: int, index: int, error: ValueError | OSError, count: bool = True) -> None:
        if not self.share:
            raise type(error)(str(error)) from error
        if not count:
            return
        with self._lock:
            self.read[part] += 1
            self.faults[part] += 1
            read, faults = self.read[part], self.faults[part]
            new = (part, index) not in self.known
            self.known.add((part, index))
            named = len(self.known)
        if faults > self.share * max(read, min(self.sizes[part], FIRST)):
            raise ValueError(f"More than the share of bad records that bad_share={self.share} allows: {faults} of "
                             f"{read} read, the last one being {error}") from error
        if new and (named <= NAMED or named % 1000 == 0):
            print(f"skipped a bad record ({named} so far): {error}", file=sys.stderr, flush=True)
