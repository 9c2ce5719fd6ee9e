"""Sources made of the user's own files: a folder of captioned images, LLaVA-style JSON with an image folder.

The text is read and checked when a source is made, so that a mistake in line 70,000 costs no training time;
images are opened at `source[i]`. Errors are one sentence that names the file and the line or entry:
FileNotFoundError for what is not there, ValueError for everything else.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import pathlib
from typing import Any, ClassVar, Iterator, NamedTuple

import numpy as np
from etils import epath

from vlm_jax.data import images
from vlm_jax.data.records import IMAGE_MARK, Message, Record

SPLITS = ("train", "test", "all")
_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
_AFTER = {None: ("system", "human"), "system": ("human",), "human": ("gpt",), "gpt": ("human",)}


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


@dataclasses.dataclass(frozen=True)
class LlavaJsonConfig:
    """A JSON list, or JSON lines (`.jsonl`), of {id, image, conversations: [{from, value}, ...]}.

    `images`: the folder that image names are relative to; None means the one the file is in.
    `split`, `holdout`: as above, by the name of the first image; without one by the id, else the words.
    """

    kind: ClassVar[str] = "llava"
    path: str
    images: str | None = None
    split: str = "train"
    holdout: float = 0.1


class CaptionFolderSource:
    """Record i: one image, its `caption`, and the same as a conversation; `meta` has `image` and `line`.

    Several lines may name one image; they are several records of the same split.
    """

    def __init__(self, config: CaptionFolderConfig):
        if IMAGE_MARK in (config.prompt or ""):
            raise ValueError(f"prompt {config.prompt!r} must not hold {IMAGE_MARK}; one is put before it")
        self.config = config
        self._folder = epath.Path(config.path)
        self._file, text = _read_captions(self._folder)
        rows = _csv_rows(text, self._file) if self._file.suffix == ".csv" else _jsonl_rows(text, self._file)
        captions = [_caption(row, line, self._file) for line, row in rows]
        self._rows = _select(captions, [row.image for row in captions], config, self._file)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        line, name, caption = self._rows[index]
        image = _open(self._folder, name, f"{self._file}:{line}")
        conversations = ()
        if self.config.prompt is not None:
            question = Message("user", f"{IMAGE_MARK}\n{self.config.prompt}")
            conversations = ((question, Message("assistant", caption)),)
        return Record((image,), caption, conversations, meta={"image": name, "line": line})


class LlavaJsonSource:
    """Record i: the images of an entry (none: text only) and its conversation, `<image>` marks left in place.

    `meta` has `id`, `image` and `type` as in the entry (None where absent), and `entry`, counted from 0.
    """

    def __init__(self, config: LlavaJsonConfig):
        self.config = config
        self._file = epath.Path(config.path)
        self._folder = epath.Path(config.images) if config.images else self._file.parent
        found = _llava_entries(_read_text(self._file), self._file)
        entries = [_llava_entry(value, n, where) for n, (where, value) in enumerate(found)]
        self._entries = _select(entries, [entry.key for entry in entries], config, self._file)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        arrays = tuple(_open(self._folder, name, entry.where) for name in entry.images)
        conversation = tuple(Message(role, text) for role, text in entry.turns)
        return Record(arrays, conversations=(conversation,), meta=dict(entry.meta))


def held_out(name: str, share: float) -> bool:
    """Whether the example called `name` is in the test split: about `share` of names, in any order."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _select(items: list, keys: list[str], config: Any, file: epath.Path) -> list:
    """The items of the configured split; none at all is an error."""
    if config.split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {config.split!r}")
    if not 0 <= config.holdout <= 1:
        raise ValueError(f"holdout must be a share from 0 to 1, not {config.holdout!r}")
    if not items:
        raise ValueError(f"{file} holds no examples; add a line or entry for each")
    if config.split != "all":
        test = config.split == "test"
        items = [item for item, key in zip(items, keys) if held_out(key, config.holdout) == test]
    if not items:
        raise ValueError(f"none of the {len(keys)} examples of {file} falls into split={config.split!r} with "
                         f"holdout={config.holdout}; change holdout or set split='all'")
    return items


class _Caption(NamedTuple):
    line: int
    image: str
    text: str


def _read_captions(folder: epath.Path) -> tuple[epath.Path, str]:
    found = []
    for file in (folder / "captions.jsonl", folder / "captions.csv"):
        try:
            found.append((file, _read_text(file)))
        except FileNotFoundError:
            continue  # one of the two is enough
    if not found:
        raise FileNotFoundError(f"{folder} holds neither captions.jsonl nor captions.csv; check the path")
    if len(found) == 2:
        raise ValueError(f"{folder} holds both captions.jsonl and captions.csv; keep one of them")
    return found[0]


def _csv_rows(text: str, file: epath.Path) -> Iterator[tuple[int, dict]]:
    """(line number, row) for each row; the number is that of the row's first line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    line = 1
    try:
        header = next(reader)
        line = reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(header):  # a caption cut off at its comma would train unnoticed
                raise ValueError(f"{file}:{line} has {len(fields)} fields for {len(header)} columns; "
                                 f"put a caption with commas in double quotes")
            if fields:
                yield line, dict(zip(header, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}:{line} is not valid CSV ({error}); check the quotes") from error


def _jsonl_rows(text: str, file: epath.Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) for each line that is not blank."""
    for line, row in enumerate(text.split("\n"), start=1):  # splitlines() also splits at U+2028
        if row.strip():
            yield line, _parse(row, file, line)


def _caption(row: Any, line: int, file: epath.Path) -> _Caption:
    where = f"{file}:{line}"
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object with 'image' and 'caption', not {row!r:.40}")
    for needed in ("image", "caption"):
        if needed not in row:
            found = ", ".join(map(repr, row)) or "nothing"
            raise ValueError(f"{where} has no column {needed!r}, only {found}; rename or add it")
    text = _string(row["caption"], "caption", where)
    if not text.strip() or IMAGE_MARK in text:
        raise ValueError(f"{where}: the caption is empty or holds {IMAGE_MARK}; correct or remove the line")
    return _Caption(line, _image_name(row["image"], where), text)


class _Entry(NamedTuple):
    where: str  # what errors call it
    key: str  # what decides its split
    images: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    meta: dict[str, Any]


def _llava_entries(text: str, file: epath.Path) -> Iterator[tuple[str, Any]]:
    """(name for errors, value) of each entry."""
    if file.suffix == ".jsonl":
        for line, value in _jsonl_rows(text, file):
            yield f"{file}:{line}", value
        return
    values = _parse(text, file)
    if not isinstance(values, list):
        raise ValueError(f"{file} must be a list of entries, not {values!r:.40}; one a line is .jsonl")
    for n, value in enumerate(values):
        name = value.get("id") if isinstance(value, dict) else None
        yield f"{file}, entry {n}" + (f" (id {name!r:.80})" if name is not None else ""), value


def _llava_entry(value: Any, n: int, where: str) -> _Entry:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object with 'conversations', not {value!r:.40}")
    given = value.get("image")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    names = tuple(_image_name(name, where) for name in listed)
    turns = _llava_turns(value.get("conversations"), where)
    marks = sum(text.count(IMAGE_MARK) for _, text in turns)
    if marks != len(names):
        raise ValueError(f"{where}: {marks} {IMAGE_MARK} marks for {len(names)} images; put one for each")
    key = names[0] if names else value.get("id")
    if key is None:
        key = "\n".join(text for _, text in turns)
    meta = {"id": value.get("id"), "image": given, "entry": n, "type": value.get("type")}
    return _Entry(where, _string(str(key), "id", where), names, turns, meta)


def _llava_turns(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    """((role, text), ...): an optional system turn, then human and gpt in turn, gpt last."""
    if not isinstance(value, list):
        raise ValueError(f"{where}: 'conversations' must be a list of turns, not {value!r:.40}")
    turns, last = [], None
    for n, turn in enumerate(value):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker not in _AFTER[last]:
            raise ValueError(f"{where}: turn {n} must be {' or '.join(_AFTER[last])}, not {speaker!r:.40}")
        text = _string(turn.get("value"), f"value of turn {n}", where)
        if speaker != "human" and IMAGE_MARK in text:
            raise ValueError(f"{where}: turn {n} from {speaker} holds {IMAGE_MARK}; only human turns may")
        turns.append((_ROLES[speaker], text))
        last = speaker
    if last != "gpt":
        raise ValueError(f"{where}: 'conversations' must end with a turn from gpt; add it or drop the entry")
    return tuple(turns)


def _read_text(file: epath.Path) -> str:
    """The UTF-8 text of a file, without the byte order mark that spreadsheets put first."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} does not exist; check the path") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}:{line} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except Exception as error:  # a folder, no permission, or whatever a bucket's client raises
        raise ValueError(f"{file} cannot be opened ({error}); check path and permissions") from error
    if not text.strip():
        raise ValueError(f"{file} is empty; add a line or entry for each example")
    return text


def _parse(text: str, file: epath.Path, line: int = 1) -> Any:
    """JSON to Python; `line` is the line of the file on which `text` starts."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, or 5,000 brackets
        line, reason = line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", error)
        raise ValueError(f"{file}:{line} is not valid JSON ({reason}); correct it") from error


def _open(folder: epath.Path, name: str, where: str) -> np.ndarray:
    try:
        return images.read(folder / name)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def _image_name(value: Any, where: str) -> str:
    """A relative path in its one spelling, so that `./a.png` and `a.png` are one image and in one split."""
    name = pathlib.PurePosixPath(_string(value, "image", where))
    if not name.parts or name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{where}: image {value!r} is not a relative path inside the image folder")
    return str(name)


def _string(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: the {what} must be a string, not {value!r:.40}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer takes
        raise ValueError(f"{where}: the {what} is not valid Unicode ({error.reason}); correct it") from error
    return value
