"""JSON lines of {image, prefix, suffix}: the form in which PaliGemma is fine-tuned."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from etils import epath

from vlm_jax.data.sources.entries import Entry, EntrySource
from vlm_jax.data.sources.llava import image_names
from vlm_jax.data.sources.said import question
from vlm_jax.data.sources.text import json_entries, read_text


@dataclasses.dataclass(frozen=True)
class PrefixSuffixConfig:
    """JSON lines (`.jsonl`), or a JSON list, of {image, prefix, suffix}; `image` is a name, a list of names, or absent.

    `images`: the folder that image names are relative to; None means the one the file is in.
    `split`, `holdout`: "train" | "test" | "all", where test holds the share `holdout` of the entries, by the name of
    the first image, else the prefix.
    """

    kind: ClassVar[str] = "prefix_suffix"
    path: str
    images: str | None = None
    split: str = "train"
    holdout: float = 0.1


class PrefixSuffixSource(EntrySource):
    """Record i: the images of an entry, the prefix as the user's words and the suffix as the answer.

    `meta` has `image` as in the entry and `entry`, counted from 0.
    """

    def __init__(self, config: PrefixSuffixConfig, keep_bad: bool = False):
        file = epath.Path(config.path)
        folder = epath.Path(config.images) if config.images else file.parent
        super().__init__(config, file, folder, json_entries(read_text(file), file), _entry, keep_bad)


def _entry(value: Any, n: int, where: str) -> Entry:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object with 'prefix' and 'suffix', not {value!r:.40}")
    names = image_names(value, where)
    words = question(value.get("prefix"), value.get("suffix"), len(names), where)
    key = names[0] if names else value["prefix"]
    return Entry(where, key, names, words, {"image": value.get("image"), "entry": n})
