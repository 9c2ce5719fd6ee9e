"""Several examples in one row, or rows of like length in one batch: planned inside fixed blocks of the order.

A block is planned from the lengths of its examples alone, which takes their text but opens no image. How many examples
a block has is fixed too, so block b begins at the same place of the order for everyone, and which examples share a row
is a function of the row's number.
"""

from __future__ import annotations

import bisect
import collections
import threading
from typing import Any, Callable, NamedTuple, Sequence

import grain
import numpy as np

from vlm_jax.data.mixture import Place
from vlm_jax.data.processor import Processor
from vlm_jax.data.reading import Reader
from vlm_jax.data.records import Record
from vlm_jax.data.rows import Tokens, join, width

MOST = 256  # examples in a row
SAMPLE = 4096  # examples by whose lengths the size of a block is decided
DRAWS = 7  # blocks drawn from them


class Size(NamedTuple):
    """What an example takes of a row: tokens, and image slots."""

    tokens: int
    slots: int


class Seat(NamedTuple):
    """An example that has its place in a plan: where it comes in the order, and the room it was given."""

    place: Place
    size: Size


def pack(sizes: Sequence[Size], rows: int, length: int, slots: int) -> list[list[int]]:
    """Which examples share each of `rows` rows, by best fit, the longest first; some may find no room.

        pack([(5, 1), (4, 1), (3, 0), (2, 0)], rows=2, length=8, slots=1) -> [[0, 2], [1, 3]]
    """
    rooms = [(length, row) for row in range(rows)]  # (tokens left, row), the fullest first
    free, shared = [slots] * rows, [[] for _ in range(rows)]
    for example in sorted(range(len(sizes)), key=lambda i: (-sizes[i].tokens, i)):
        tokens, wanted = sizes[example]
        for at in range(bisect.bisect_left(rooms, (tokens, 0)), rows):
            room, row = rooms[at]
            if free[row] >= wanted and len(shared[row]) < MOST:
                del rooms[at]
                bisect.insort(rooms, (room - tokens, row))
                free[row] -= wanted
                shared[row].append(example)
                break
    return [sorted(row) for row in shared]


def pack_first(sizes: Sequence[Size], rows: int, length: int, slots: int) -> list[list[int]]:
    """`pack` of as many of the first examples as all find room.

    Those left out are the last ones, whatever their length: a choice by fit would leave out the same kind every time.
    """
    whole = pack(sizes, rows, length, slots)
    low, high = min(rows, len(sizes)), len(sizes) + 1  # each fits into a row, so the first `rows` always do
    if sum(map(len, whole)) == len(sizes):
        return whole
    while high - low > 1:
        middle = (low + high) // 2
        whole = pack(sizes[:middle], rows, length, slots)
        low, high = (middle, high) if sum(map(len, whole)) == middle else (low, middle)
    return pack(sizes[:low], rows, length, slots)


def block_size(sizes: Sequence[Size], rows: int, length: int, slots: int) -> int:
    """How many examples of such sizes a block of `rows` rows is given: as many as find room in every second block.

    A block with fewer than it could take has emptier rows, one with more leaves some out until the next epoch: between
    the two both are rare.
    """
    rng, found = np.random.default_rng(0), []
    most = rows * min(MOST, -(-length * len(sizes) // sum(size.tokens for size in sizes))) + 1
    for _ in range(DRAWS):
        drawn = [sizes[i] for i in rng.integers(len(sizes), size=most)]
        found.append(sum(map(len, pack_first(drawn, rows, length, slots))))
    return int(np.median(found))


class Seats:
    """Finds the room that examples need, and fills it. `processor` and `form` (a RowsConfig) say what an example is."""

    def __init__(self, reader: Reader, processor: Processor, form: Any):
        self.reader, self.processor, self.form = reader, processor, form

    def _look(self, record: Record) -> tuple[Size, list[Tokens]]:
        form = self.form
        fitting = self.processor.fitting(record, form.length, form.image_slots, form.loss)
        return Size(width(fitting), len(record.images) if form.image_slots else 0), fitting

    def find(self, place: Place) -> Seat:
        """A place with the room for its example, or for the substitute that a bad text makes necessary."""
        found = self.reader.first_good(place, lambda record: {"size": self._look(record)[0]}, count=False)
        return Seat(place, found["size"])

    def fill(self, seat: Seat, length: int | None = None, slots: int | None = None) -> dict[str, Any] | None:
        """The row of a seat's example alone, of its own size unless another is given.

        A substitute for an example with a bad image is the first that fits into the seat; None where none does.
        """

        def made(record: Record) -> dict[str, Any] | None:
            size, fitting = self._look(record)
            if size.tokens > seat.size.tokens or size.slots > seat.size.slots:
                return None
            return self.processor.placed(fitting, record, length or size.tokens, size.slots if slots is None else slots)

        return self.reader.first_good(seat.place, made)


class Recent:
    """The plans of the last few blocks. They stay behind when a pipeline goes to another process."""

    def __init__(self):
        self._made, self._lock = collections.OrderedDict(), threading.Lock()

    def __reduce__(self):
        return Recent, ()

    def get(self, block: int, plan: Callable[[int], Any]) -> Any:
        with self._lock:  # two threads want the same block at the same time
            if block not in self._made:
                self._made[block] = plan(block)
                if len(self._made) > 4:
                    self._made.popitem(last=False)
            return self._made[block]


class PackedRows(grain.MapDataset):
    """Row after row of several examples; `origin` [MOST, 2] has the place of each, -1 behind the last."""

    def __init__(self, order: grain.MapDataset, seats: Seats, seed: int):
        super().__init__(order)
        self._order, self._seats, self._seed, self._recent = order, seats, seed, Recent()
        self._rows, self._length, self._slots = seats.form.block, seats.form.length, seats.form.image_slots
        sample = [seats.find(order[i]).size for i in range(SAMPLE)]
        self.examples = block_size(sample, self._rows, self._length, self._slots)

    def __len__(self) -> int:
        return len(self._parent) // self.examples * self._rows

    def _plan(self, block: int) -> list[list[Seat]]:
        """The seats of each row of a block. Rows stand in a random order, else the longest examples came first."""
        start = block * self.examples
        seats = [self._seats.find(self._order[start + i]) for i in range(self.examples)]
        shared = pack_first([seat.size for seat in seats], self._rows, self._length, self._slots)
        mixed = np.random.default_rng([self._seed, block]).permutation(self._rows)
        return [[seats[example] for example in shared[row]] for row in mixed]

    def __getitem__(self, index: int) -> dict[str, Any]:
        block, row = divmod(index, self._rows)
        made = [self._seats.fill(seat) for seat in self._recent.get(block, self._plan)[row]]
        made = [example for example in made if example is not None]
        origin = np.full((MOST, 2), -1, np.int64)
        for i, example in enumerate(made):
            origin[i] = example.pop("origin")
        processor = self._seats.processor
        slots = processor.blank(self._slots) if self._slots else None
        return join(made, self._length, slots, processor.tokens_per_image) | {"origin": origin}


class RowsByLength(grain.MapDataset):
    """Row after row of one example, so that the rows of a batch are of like length, and no longer than they need.

    Some batches are planned together: their examples, sorted by length, are dealt out, and each batch is as long as its
    longest asks for, in quarters of the full length: a run compiles four steps at most.
    """

    def __init__(self, order: grain.MapDataset, seats: Seats, seed: int, batch: int):
        super().__init__(order)
        self._order, self._seats, self._seed, self._recent = order, seats, seed, Recent()
        self._batch, self._batches, self._length = batch, max(seats.form.block // batch, 1), seats.form.length

    def __len__(self) -> int:
        return len(self._parent)

    def _plan(self, block: int) -> list[tuple[int, list[Seat]]]:
        """(length, seats) of each batch of a block; batches stand in a random order."""
        count = self._batch * self._batches
        seats = [self._seats.find(self._order[block * count + i]) for i in range(count)]
        by_length = sorted(range(count), key=lambda i: (seats[i].size.tokens, i))
        planned = []
        for start in np.random.default_rng([self._seed, block]).permutation(self._batches) * self._batch:
            own = [seats[i] for i in sorted(by_length[start : start + self._batch])]
            quarters = -(-4 * max(seat.size.tokens for seat in own) // self._length)
            planned.append((-(-quarters * self._length // 4), own))
        return planned

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, row = divmod(index, self._batch)
        block, number = divmod(step, self._batches)
        length, seats = self._recent.get(block, self._plan)[number]
        form = self._seats.form
        room = Seat(seats[row].place, Size(length, form.image_slots))
        return self._seats.fill(room, length, form.image_slots)
