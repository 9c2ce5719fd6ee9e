"""Batches as a pure function of (config, seed, step): Grain shuffles, maps and batches; nothing else keeps state."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, ClassVar, Iterator, Sequence

import grain
import numpy as np

from vlm_jax.data.images import Augmentation
from vlm_jax.data.processor import Processor
from vlm_jax.data.records import Record, Source
from vlm_jax.data.registry import SourceConfig, open_source
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
    """Conversations as rows of tokens. `image_slots` 0 is text alone; `loss` is "answers" or "all" (every token)."""

    kind: ClassVar[str] = "rows"
    length: int
    image_slots: int = 1
    loss: str = "answers"

    def __post_init__(self):
        if self.loss not in ("answers", "all"):
            raise ValueError(f"loss '{self.loss}' is unknown; choose 'answers' or 'all'.")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where a stage's examples come from, how many make a (global) batch, and what a batch looks like."""

    source: SourceConfig
    batch: int
    format: PairsConfig | RowsConfig

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be 1 or more.")


def example(record: Record, processor: Processor, config: PairsConfig | RowsConfig,
            rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of one example, without a batch axis (names and shapes: the objectives that read them)."""
    if isinstance(config, RowsConfig):
        return processor.row(record, config.length, config.image_slots, config.loss)
    if not record.images or record.caption is None:
        raise ValueError(f"{record.name}: it has no image or no caption; the contrastive stage needs both.")
    image = config.augment(record.images[0], rng)
    pair = {"images": processor.images([image])[0], "text": processor.text(record.caption)}
    if config.regions:
        pair["boxes"] = np.zeros((config.regions, 4), np.float32)
        pair["box_text"] = np.stack([processor.text("")] * config.regions)
        for i, region in enumerate(record.regions[: config.regions]):
            pair["boxes"][i], pair["box_text"][i] = region.box, processor.text(region.phrase)
    return pair


def stage_seed(seed: int, stage: str) -> int:
    """A seed of its own for each stage; Grain takes 32 bits."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stage.encode())]).generate_state(1)[0])


def dataset(config: DataConfig, processor: Processor, seed: int, rows: Sequence[int] | None = None) -> grain.MapDataset:
    """The endless data set of batches: element k is the batch of step k, whoever reads it and whenever.

    With `rows`, only these rows of it (see `batches`).
    """
    examples = (grain.MapDataset.source(open_source(config.source)).seed(seed).shuffle().repeat(reseed_each_epoch=True)
                .random_map(lambda record, rng: example(record, processor, config.format, rng)))
    rows = range(config.batch) if rows is None else rows
    return HostRows(examples, config.batch, rows).batch(len(rows))


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
    """The batches of steps start to stop - 1, prepared by background threads while the device computes.

    `rows`: the places in the (global) batch that this host needs, ascending; None is all of them. Hosts whose devices
    hold replicas of one another name the same rows and get the same data.
    """
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(dataset(config, processor, seed, rows).slice(slice(start, stop)).to_iter_dataset(options))


def texts(source: Source, count: int, chat: ChatTemplate) -> Iterator[str]:
    """What a tokenizer is trained on: the pieces of text it will encode, of the first `count` records."""
    for record in (source[i] for i in range(min(count, len(source)))):
        yield from filter(None, (record.caption,))
        for conversation in record.conversations:
            yield from (piece.text for piece in render(chat, conversation) if not piece.special)
