"""A folder of images with their captions in `captions.jsonl` or `captions.csv`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from etils import epath

from vlm_jax.data.sources.entries import Entry, EntrySource
from vlm_jax.data.sources.said import captioned, check_prompt
from vlm_jax.data.sources.text import csv_rows, image_name, jsonl_rows, read_text


@dataclasses.dataclass(frozen=True)
class CaptionFolderConfig:
    """A folder with `captions.jsonl` or `captions.csv`: columns `image` (relative to the folder), `caption`.

    `split`: "train" | "test" | "all"; test holds the share `holdout` of the image names (see `held_out`).
    `prompt`: what the user says before the caption; None yields captions without a conversation.
    """

    kind: ClassVar[str] = "captions"
    path: str
    split: str = "train"
    holdout: float = 0.1
    prompt: str | None = "Describe the image."


class CaptionFolderSource(EntrySource):
    """Record i: one image, its `caption`, and the same as a conversation; `meta` has `image` and `line`.

    Several lines may name one image; they are several records of the same split.
    """

    def __init__(self, config: CaptionFolderConfig, keep_bad: bool = False):
        check_prompt(config.prompt)
        self._prompt = config.prompt
        file, text = _read_captions(epath.Path(config.path))
        lines = csv_rows(text, file) if file.suffix == ".csv" else jsonl_rows(text, file)
        rows = ((f"{file}:{line}", (line, row) if not isinstance(row, ValueError) else row) for line, row in lines)
        super().__init__(config, file, epath.Path(config.path), rows, self._entry, keep_bad)

    def _entry(self, value: tuple[int, Any], n: int, where: str) -> Entry:
        line, row = value
        if not isinstance(row, dict):
            raise ValueError(f"{where} must be an object with 'image' and 'caption', not {row!r:.40}")
        for needed in ("image", "caption"):
            if needed not in row:
                found = ", ".join(map(repr, row)) or "nothing"
                raise ValueError(f"{where} has no column {needed!r}, only {found}; rename or add it")
        words = captioned(row["caption"], 1, where, self._prompt)
        name = image_name(row["image"], where)
        return Entry(where, name, (name,), words, {"image": name, "line": line})


def _read_captions(folder: epath.Path) -> tuple[epath.Path, str]:
    found = []
    for file in (folder / "captions.jsonl", folder / "captions.csv"):
        try:
            found.append((file, read_text(file)))
        except FileNotFoundError:
            continue  # one of the two is enough
    if not found:
        raise FileNotFoundError(f"{folder} holds neither captions.jsonl nor captions.csv; check the path")
    if len(found) == 2:
        raise ValueError(f"{folder} holds both captions.jsonl and captions.csv; keep one of them")
    return found[0]
