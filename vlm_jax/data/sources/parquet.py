"""Parquet files with the images' files in a column, as Hugging Face datasets store them."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from etils import epath

from vlm_jax.data.encoded import from_bytes
from vlm_jax.data.records import Record
from vlm_jax.data.sources.files import shards
from vlm_jax.data.sources.said import check_prompt, said
from vlm_jax.data.sources.text import parse_json

GROUPS = 4  # row groups kept, for rows are read a group at a time


@dataclasses.dataclass(frozen=True)
class ParquetConfig:
    """`path`: a Parquet file, a folder of them, or a pattern.

    `image`: the column of images, each the bytes of an image file, {bytes, path}, or a list of these; rows without one
    are text. The words are in the column `caption`, or in `conversations`, or in `prefix` and `suffix`.
    `prompt`: what the user says before a caption; None yields captions without a conversation.

    Rows are read a row group at a time: for training in a shuffled order from groups of more than some hundred rows,
    turn the files into ArrayRecord first (`python -m vlm_jax.prepare`).
    """

    kind: ClassVar[str] = "parquet"
    path: str
    image: str = "image"
    caption: str = "caption"
    prompt: str | None = "Describe the image."


class Group(NamedTuple):
    """A row group: the number of its file, its own there, its rows, and the first one's number in the file."""

    file: int
    group: int
    rows: int
    start: int


class ParquetSource:
    """Record i: row i, in the order of the files' names; `meta` has `file` and `row`, counted from 0 in its file."""

    def __init__(self, config: ParquetConfig, keep_bad: bool = False):
        check_prompt(config.prompt)
        self.config, self._files = config, shards(config.path, (".parquet",))
        self._columns: list[list[str]] = []
        self._groups: list[Group] = []
        for number, file in enumerate(self._files):
            with _open(file) as opened:
                self._columns.append(self._wanted(file, opened.schema_arrow.names))
                sizes = [opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)]
            starts = np.cumsum([0, *sizes]).tolist()
            self._groups += [Group(number, g, rows, starts[g]) for g, rows in enumerate(sizes)]
        self._ends = np.cumsum([group.rows for group in self._groups], dtype=np.int64)
        self._fresh()

    def _fresh(self) -> None:
        self._kept, self._lock, self._process = collections.OrderedDict(), threading.Lock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    def _wanted(self, file: epath.Path, columns: list[str]) -> list[str]:
        known = {self.config.image, self.config.caption, "conversations", "prefix", "suffix"}
        found = [name for name in columns if name in known]
        if not set(found) - {self.config.image}:
            raise ValueError(f"{file} has the columns {', '.join(columns)}, none of them with words; set the source's "
                             f"caption to the column that has them")
        return found

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"parquet: row {index} is outside 0..{len(self) - 1}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        group, table = self._groups[number], self._table(number)
        row = index - int(self._ends[number]) + group.rows
        file, at = self._files[group.file], group.start + row
        where = f"{file}, row {at}"
        try:
            value = {name: table[name][row].as_py() for name in table.column_names}
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 ({error.reason}); correct it or leave it out") from error
        data, names = _images(value.pop(self.config.image, None), where)
        fields = {name: item for name, item in value.items() if item is not None}
        if isinstance(fields.get("conversations"), str):  # nested columns, or JSON
            fields["conversations"] = parse_json(fields["conversations"], epath.Path(where))
        words = said(fields, len(data), where, self.config.prompt, self.config.caption)
        return Record(from_bytes(data, names, where), words.caption, words.conversations,
                      meta={"file": file.name, "row": at})

    def _table(self, at: int) -> pyarrow.Table:
        """A row group, from memory if it was read lately."""
        with self._lock:
            if at not in self._kept:
                group = self._groups[at]
                with _open(self._files[group.file]) as opened:
                    self._kept[at] = opened.read_row_group(group.group, columns=self._columns[group.file])
                if len(self._kept) > GROUPS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(at)
            return self._kept[at]


def _open(file: epath.Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(file.open("rb"))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a Parquet file, or a damaged one ({error}); replace it") from error


def _images(value: Any, where: str) -> tuple[list[bytes], list[str]]:
    """(files, names for errors) of a cell: None, bytes, {bytes, path}, or a list of them."""
    cells = [] if value is None else value if isinstance(value, list) else [value]
    data, names = [], []
    for n, cell in enumerate(cells):
        file = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(file, bytes):
            raise ValueError(f"{where}: the image must be the bytes of an image file, not {cell!r:.40}")
        data.append(file)
        names.append((cell.get("path") if isinstance(cell, dict) else None) or str(n))
    return data, names
