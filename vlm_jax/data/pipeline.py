"""Batches as a pure function of (config, seed, step): Grain shuffles, maps and batches; nothing else keeps state."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any, ClassVar, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from vlm_jax.data.images import Augmentation
from vlm_jax.data.mixture import MixtureConfig, OpenPart, open_parts, order
from vlm_jax.data.packing import PackedRows, RowsByLength, Seats
from vlm_jax.data.processor import Processor
from vlm_jax.data.reading import Readable, Reader
from vlm_jax.data.records import Record, Source
from vlm_jax.data.registry import SourceConfig
from vlm_jax.data.templates import ChatTemplate, render

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """Image and caption, for contrast. `regions` is the number of box slots a batch has for each image, 0 for none."""

    kind: ClassVar[str] = "pairs"
    regions: int = 0
    augment: Augmentation = Augmentation()


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """Conversations as rows of tokens. `image_slots` 0 is text alone; `loss` is "answers" or "all" (every token).

    `arrange`: "single", one example in a row of `length`; "packed", as many as fit, with all their images in the slots;
    "by_length", one in a row, but rows of like length in a batch, which is only as long as it must be. Packed rows are
    planned `block` at a time, batches by length `block` rows at a time: the more, the fuller and the slower to begin.
    `branches` False promises that no example has several conversations: the batch then does not speak of branches, and
    a fused attention kernel that cannot follow them may be used (`models/kernels.py`).
    """

    kind: ClassVar[str] = "rows"
    length: int
    image_slots: int = 1
    loss: str = "answers"
    arrange: str = "single"
    block: int = 256
    branches: bool = True

    def __post_init__(self):
        if self.loss not in ("answers", "all"):
            raise ValueError(f"loss '{self.loss}' is unknown; choose 'answers' or 'all'.")
        if self.arrange not in ("single", "packed", "by_length"):
            raise ValueError(f"arrange '{self.arrange}' is unknown; choose 'single', 'packed' or 'by_length'.")
        if self.block < 1:
            raise ValueError(f"block is {self.block}; it must be 1 or more.")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where a stage's examples come from, how many make a (global) batch, and what a batch looks like.

    `bad_share`: the share of records that may be unreadable; each is named and its place taken by another record. 0
    stops at the first. `workers`: processes that prepare batches, 0 for threads alone; they change no batch.
    """

    source: SourceConfig | MixtureConfig
    batch: int
    format: PairsConfig | RowsConfig
    bad_share: float = 0.0
    workers: int = 0

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be 1 or more.")
        if not 0 <= self.bad_share < 1:
            raise ValueError(f"bad_share is {self.bad_share}; it must be a share from 0 to below 1.")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it must be 0 or more.")

    def open(self) -> list[OpenPart]:
        """The sources, opened; raises for what is missing, empty or, unless some may be, bad."""
        return open_parts(self.source, keep_bad=self.bad_share > 0)

    def records(self) -> list[Source]:
        """The selected records of each source without the bad ones, for whoever learns from text before training."""
        return [Readable(part, self.bad_share) for part in self.open()]


def example(record: Record, processor: Processor, config: PairsConfig | RowsConfig,
            rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of one example, without a batch axis (names and shapes: the objectives that read them)."""
    if isinstance(config, RowsConfig):
        return processor.row(record, config.length, config.image_slots, config.loss)
    if not record.images or record.caption is None:
        raise ValueError(f"{record.name}: it has no image or no caption; the contrastive stage needs both.")
    image = config.augment(record.images[0], rng)
    pair = {"images": processor.config.image(image), "text": processor.text(record.caption)}
    if config.regions:
        pair["boxes"] = np.zeros((config.regions, 4), np.float32)
        pair["box_text"] = np.stack([processor.text("")] * config.regions)
        for i, region in enumerate(record.regions[: config.regions]):
            pair["boxes"][i], pair["box_text"][i] = region.box, processor.text(region.phrase)
    return pair


def stage_seed(seed: int, stage: str) -> int:
    """A seed of its own for each stage; Grain takes 32 bits."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stage.encode())]).generate_state(1)[0])


def traced(config: DataConfig, processor: Processor, seed: int, rows: Sequence[int] | None = None) -> grain.MapDataset:
    """`dataset`, with the places [part, index] that each row was read from under `origin`, int64 [batch, 2] or, packed,
    [batch, examples, 2] with -1 behind the last."""
    parts = config.open()
    make = functools.partial(example, processor=processor, config=config.format)
    reader = Reader(parts, lambda record, rng: make(record, rng=rng), seed, config.bad_share)
    places = order(parts, seed)
    arrange = getattr(config.format, "arrange", "single")
    if arrange == "packed":
        examples = PackedRows(places, Seats(reader, processor, config.format), seed)
    elif arrange == "by_length":
        examples = RowsByLength(places, Seats(reader, processor, config.format), seed, config.batch)
    else:
        examples = places.random_map(reader)
    rows = range(config.batch) if rows is None else rows
    return HostRows(examples, config.batch, rows).batch(len(rows))


def dataset(config: DataConfig, processor: Processor, seed: int, rows: Sequence[int] | None = None) -> grain.MapDataset:
    """The endless data set of batches: element k is the batch of step k, whoever reads it and whenever.

    With `rows`, only these rows of it (see `batches`).
    """
    return traced(config, processor, seed, rows).map(functools.partial(_for_training, config.format))


def _for_training(form: PairsConfig | RowsConfig, batch: Batch) -> Batch:
    """What a step takes of a batch. Raises where it has branches that the config says it has not."""
    batch = {name: value for name, value in batch.items() if name != "origin"}
    if isinstance(form, RowsConfig) and not form.branches and batch.pop("subsegment_ids").any():
        raise ValueError("An example has several conversations; set the stage's data.format.branches to True, or give "
                         "each conversation a record of its own.")
    return batch


class HostRows(grain.MapDataset):
    """The examples of each batch of `batch` that one host reads: those in the places `rows`, ascending."""

    def __init__(self, parent: grain.MapDataset, batch: int, rows: Sequence[int]):
        super().__init__(parent)
        self._batch, self._rows = batch, tuple(rows)
        if not self._rows or self._rows[0] < 0 or self._rows[-1] >= batch or sorted(set(rows)) != list(rows):
            raise ValueError(f"A host reads some of the rows 0 to {batch - 1} in ascending order, not {list(rows)}.")

    def __len__(self) -> int:
        return len(self._parent) // self._batch * len(self._rows)

    def __getitem__(self, index: int) -> Any:
        step, place = divmod(index, len(self._rows))
        return self._parent[step * self._batch + self._rows[place]]


def batches(config: DataConfig, processor: Processor, seed: int, start: int, stop: int,
            rows: Sequence[int] | None = None) -> Iterator[Batch]:
    """The batches of steps start to stop - 1, prepared in the background while the device computes.

    `rows`: the places in the (global) batch that this host needs, ascending; None is all of them. Hosts whose devices
    hold replicas of one another name the same rows and get the same data.
    """
    return read(dataset(config, processor, seed, rows), start, stop, config.workers)


def read(data: grain.MapDataset, start: int, stop: int, workers: int = 0) -> Iterator[Any]:
    """Elements start to stop - 1 in order, prepared by threads, or by processes with threads of their own."""
    wanted = data.slice(slice(start, stop)).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if not workers:
        return iter(wanted)
    if not flags.FLAGS.is_parsed():  # Grain hands absl's flags to its workers, and ours are no absl programs
        flags.FLAGS.mark_as_parsed()
    return iter(wanted.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))


def texts(source: Source, count: int, chat: ChatTemplate) -> Iterator[str]:
    """What a tokenizer is trained on: the pieces of text it will encode, of the first `count` records."""
    for record in (source[i] for i in range(min(count, len(source)))):
        yield from filter(None, (record.caption,))
        for conversation in record.conversations:
            yield from (piece.text for piece in render(chat, conversation) if not piece.special)
