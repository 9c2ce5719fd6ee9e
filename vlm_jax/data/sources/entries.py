"""Sources whose text fits in memory: entries that are checked when the source is made, in one split or the other.

A mistake in line 70,000 so costs no training time. Where a share of bad records is allowed, `keep_bad` leaves a bad
entry in its place instead, and it raises when it is asked for: the order of all others is what it would be without.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Callable, Iterable, Mapping

from etils import epath

from vlm_jax.data.encoded import from_folder
from vlm_jax.data.records import Record
from vlm_jax.data.sources.said import Said
from vlm_jax.data.sources.text import Row, attempt

SPLITS = ("train", "test", "all")


@dataclasses.dataclass(frozen=True)
class Entry:
    """`where` is what errors call it, `key` decides its split; `images` are names in the source's folder."""

    where: str
    key: str
    images: tuple[str, ...]
    said: Said
    meta: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Bad:
    """What stands in an entry's place when it cannot be read."""

    key: str
    error: ValueError


class EntrySource:
    """Record i is made of entry i of the split; its images are opened when they are asked for."""

    def __init__(self, config: Any, file: epath.Path, folder: epath.Path, rows: Iterable[Row],
                 entry: Callable[[Any, int, str], Entry], keep_bad: bool):
        """`rows` are the file's, in order; `entry(value, number, where)` makes of each what it means."""
        self.config, self._folder = config, folder
        entries = []
        for n, (where, value) in enumerate(rows):
            made = value if isinstance(value, ValueError) else attempt(entry, value, n, where)
            if isinstance(made, ValueError):
                made = Bad(where, made)
                if not keep_bad:
                    raise ValueError(str(made.error)) from made.error
            entries.append(made)
        self._entries = _select(entries, config, file)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        if isinstance(entry, Bad):
            raise ValueError(str(entry.error))
        return Record(from_folder(self._folder, entry.images, entry.where), entry.said.caption,
                      entry.said.conversations, meta=dict(entry.meta))


def held_out(name: str, share: float) -> bool:
    """Whether the example called `name` is in the test split: about `share` of names, in any order."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _select(entries: list[Entry | Bad], config: Any, file: epath.Path) -> list[Entry | Bad]:
    """The entries of the configured split; none at all is an error."""
    if config.split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {config.split!r}")
    if not 0 <= config.holdout <= 1:
        raise ValueError(f"holdout must be a share from 0 to 1, not {config.holdout!r}")
    if not entries:
        raise ValueError(f"{file} holds no examples; add a line or entry for each")
    chosen = entries
    if config.split != "all":
        test = config.split == "test"
        chosen = [entry for entry in entries if held_out(entry.key, config.holdout) == test]
    if not chosen:
        raise ValueError(f"none of the {len(entries)} examples of {file} falls into split={config.split!r} with "
                         f"holdout={config.holdout}; change holdout or set split='all'")
    return chosen
