"""What every source yields: one record is one example, before any tokenizer or image size is known."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping, Protocol, Sequence

import numpy as np

IMAGE_MARK = "<image>"


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation. `<image>` in a user's text marks where the record's next image goes."""

    role: str  # "system" | "user" | "assistant"
    text: str


Conversation = tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Region:
    """A box of the first image and the phrase that names it."""

    box: tuple[float, float, float, float]  # left, top, right, bottom, as fractions of the image
    phrase: str


@dataclasses.dataclass(frozen=True)
class Record:
    """One example of a source.

    `images` are H x W x 3 uint8 arrays, which a source may decode only when one is taken out: then a damaged file
    raises there. `conversations` all talk about the same images and do not see each other; every one of them carries
    its own `<image>` marks. `meta` is free for a source's own facts.
    """

    images: Sequence[np.ndarray] = ()
    caption: str | None = None
    conversations: tuple[Conversation, ...] = ()
    regions: tuple[Region, ...] = ()
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """What errors call this record: the facts of `meta` that are plain words or numbers."""
        facts = [f"{key} {value}" for key, value in self.meta.items() if isinstance(value, (str, int))]
        return ", ".join(["record", *facts])


class Source(Protocol):
    """Random access to records: reading `source[i]` twice gives the same record."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
