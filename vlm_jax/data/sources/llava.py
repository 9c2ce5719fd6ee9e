"""LLaVA-style JSON: conversations about no image, one or several."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from etils import epath

from vlm_jax.data.sources.entries import Entry, EntrySource
from vlm_jax.data.sources.said import conversation
from vlm_jax.data.sources.text import image_name, json_entries, read_text, string


@dataclasses.dataclass(frozen=True)
class LlavaJsonConfig:
    """A JSON list, or JSON lines (`.jsonl`), of {id, image, conversations: [{from, value}, ...]}.

    `images`: the folder that image names are relative to; None means the one the file is in.
    `split`, `holdout`: "train" | "test" | "all", where test holds the share `holdout` of the entries, by the name of
    the first image; without one by the id, else the words.
    """

    kind: ClassVar[str] = "llava"
    path: str
    images: str | None = None
    split: str = "train"
    holdout: float = 0.1


class LlavaJsonSource(EntrySource):
    """Record i: the images of an entry (none: text only) and its conversation, `<image>` marks left in place.

    `meta` has `id`, `image` and `type` as in the entry (None where absent), and `entry`, counted from 0.
    """

    def __init__(self, config: LlavaJsonConfig, keep_bad: bool = False):
        file = epath.Path(config.path)
        folder = epath.Path(config.images) if config.images else file.parent
        super().__init__(config, file, folder, json_entries(read_text(file), file), _entry, keep_bad)


def image_names(value: dict[str, Any], where: str) -> tuple[str, ...]:
    """The names under `image`: none, one, or a list."""
    given = value.get("image")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    return tuple(image_name(name, where) for name in listed)


def _entry(value: Any, n: int, where: str) -> Entry:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object with 'conversations', not {value!r:.40}")
    names = image_names(value, where)
    words = conversation(value.get("conversations"), len(names), where)
    key = names[0] if names else value.get("id")
    if key is None:
        key = "\n".join(message.text for message in words.conversations[0])
    meta = {"id": value.get("id"), "image": value.get("image"), "entry": n, "type": value.get("type")}
    return Entry(where, string(str(key), "id", where), names, words, meta)
