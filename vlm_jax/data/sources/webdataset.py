"""WebDataset: tar files in which the members of one example share a name and differ in what follows its first dot.

    000.jpg  000.txt  001.jpg  001.txt  ...

Each tar is read through once, for the places of its members; from then on an example is read where it lies, in any
order, without unpacking.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tarfile
from typing import Any, ClassVar, NamedTuple

from etils import epath

from vlm_jax.data.encoded import from_bytes
from vlm_jax.data.records import Record
from vlm_jax.data.sources.entries import Bad
from vlm_jax.data.sources.files import RangeReader, shards
from vlm_jax.data.sources.said import check_prompt, said
from vlm_jax.data.sources.text import MAX_TEXT, parse_json

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


@dataclasses.dataclass(frozen=True)
class WebDatasetConfig:
    """`path`: a tar file, a folder of them, or a pattern (`train-*.tar`).

    An example has images (`jpg`, `png`, ...; several as `0.jpg`, `1.jpg`) and words: `txt` with a caption, or `json`
    with conversations, prefix and suffix, or a caption in the field `caption`.
    `prompt`: what the user says before a caption; None yields captions without a conversation.
    """

    kind: ClassVar[str] = "webdataset"
    path: str
    caption: str = "caption"
    prompt: str | None = "Describe the image."


class Member(NamedTuple):
    extension: str
    offset: int
    size: int


class Sample(NamedTuple):
    """The members of one example, in the order of the tar."""

    tar: int
    key: str
    members: tuple[Member, ...]


class WebDatasetSource:
    """Record i: example i, in the order of the tars' names and of the examples inside; `meta` has `tar` and `key`."""

    def __init__(self, config: WebDatasetConfig, keep_bad: bool = False):
        check_prompt(config.prompt)
        self.config, self._files, self._reader = config, shards(config.path, (".tar",)), RangeReader()
        self._samples: list[Sample | Bad] = []
        for number, file in enumerate(self._files):
            for sample in _samples(file, number):
                if isinstance(sample, Bad) and not keep_bad:
                    raise ValueError(str(sample.error))
                self._samples.append(sample)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Record:
        sample = self._samples[index]
        if isinstance(sample, Bad):
            raise ValueError(str(sample.error))
        file = self._files[sample.tar]
        where, names, data, fields = f"{file}, {sample.key}", [], [], {}
        for member in sample.members:
            ending = member.extension.rsplit(".", 1)[-1]
            if ending in IMAGES:
                names.append(f"{sample.key}.{member.extension}")
                data.append(self._reader.read(file, member.offset, member.size))
            elif ending in ("txt", "json"):
                fields |= self._words(file, member, ending, where)
        words = said(fields, len(data), where, self.config.prompt, self.config.caption)
        return Record(from_bytes(data, names, where), words.caption, words.conversations,
                      meta={"tar": file.name, "key": sample.key})

    def _words(self, file: epath.Path, member: Member, ending: str, where: str) -> dict[str, Any]:
        if member.size > 4 * MAX_TEXT:
            raise ValueError(f"{where}: {member.extension} has {member.size:,} bytes of text, over the limit of "
                             f"{4 * MAX_TEXT:,}; shorten it or leave it out")
        try:
            text = self._reader.read(file, member.offset, member.size).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: {member.extension} is not UTF-8 ({error.reason}); save it as UTF-8") from error
        if ending == "txt":
            return {self.config.caption: text.strip()}
        value = parse_json(text, epath.Path(f"{where}.{member.extension}"))
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {member.extension} must hold an object, not {value!r:.40}")
        return value


def _samples(file: epath.Path, number: int) -> list[Sample | Bad]:
    """The examples of a tar; one with a member outside the data set stays in its place as an error."""
    samples: dict[str, list[Member]] = {}
    outside = {}
    try:
        with file.open("rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                path = pathlib.PurePosixPath(member.name)
                stem, _, extension = path.name.partition(".")
                key = str(path.with_name(stem)) if stem else str(path)
                samples.setdefault(key, []).append(Member(extension.lower(), member.offset_data, member.size))
                if path.is_absolute() or ".." in path.parts:
                    outside.setdefault(key, member.name)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{file} is no uncompressed tar file, or a damaged one ({error}); unpack or replace "
                         f"it") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be opened ({error}); check path and permissions") from error
    if not samples:
        raise ValueError(f"{file} holds no files; remove it or put examples into it")
    problem = lambda key: ValueError(f"{file}: member {outside[key]!r:.80} is not a relative path inside the tar; "
                                     f"rename it or leave it out")
    return [Bad(key, problem(key)) if key in outside else Sample(number, key, tuple(members))
            for key, members in samples.items()]
