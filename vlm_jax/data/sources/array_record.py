"""ArrayRecord files of whole records: what `python -m vlm_jax.prepare` writes, and the fastest thing to train from.

A record is 4 bytes that give the length of a JSON header (little-endian), the header, and then the image files one
after the other. The header holds the record's own fields, and under `images` the size in bytes of each file.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, ClassVar

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from vlm_jax.data.encoded import EncodedImages, as_png, from_bytes
from vlm_jax.data.records import Message, Record, Region
from vlm_jax.data.sources.files import shards

SUFFIX = ".array_record"


@dataclasses.dataclass(frozen=True)
class ArrayRecordConfig:
    """`path`: a file, a folder of `*.array_record` files, or a pattern."""

    kind: ClassVar[str] = "array_record"
    path: str


class ArrayRecordSource:
    """Record i: record i, in the order of the files' names, as the source it was made of had it.

    Text is as that source had checked it. Raises ValueError where a file is damaged or holds something else.
    """

    def __init__(self, config: ArrayRecordConfig, keep_bad: bool = False):
        self.config = config
        folder = epath.Path(config.path)
        if (folder / "plan.json").exists() and not (folder / "manifest.json").exists():
            raise ValueError(f"{folder} is not prepared to its end; run the same python -m vlm_jax.prepare again")
        files = [str(file) for file in shards(config.path, (SUFFIX,))]
        try:
            self._records = ArrayRecordDataSource(files)
        except Exception as error:  # the library raises RuntimeError and what its file system raises
            raise ValueError(f"{config.path} is not an ArrayRecord file, or a damaged one ({error}); make it again "
                             f"with python -m vlm_jax.prepare") from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"array_record: record {index} is outside 0..{len(self) - 1}")
        index %= len(self)
        where = f"{self.config.path}, record {index}"
        try:
            return unpack(self._records[index], where)
        except Exception as error:  # damage may show as anything from a failed checksum to a missing key
            raise ValueError(f"{where} is damaged or was not written by python -m vlm_jax.prepare ({error}); make it "
                             f"again") from error


def pack(record: Record) -> bytes:
    """A record as bytes. Image files go in as they are; images that never were files, as PNG."""
    encoded = isinstance(record.images, EncodedImages)
    files = [file.read() for file in record.images.files] if encoded else [as_png(image) for image in record.images]
    header = {
        "images": [len(file) for file in files], "caption": record.caption,
        "conversations": [[[message.role, message.text] for message in talk] for talk in record.conversations],
        "regions": [[region.box, region.phrase] for region in record.regions], "meta": dict(record.meta)}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return b"".join([len(head).to_bytes(4, "little"), head, *files])


def unpack(data: bytes, where: str) -> Record:
    """The record that `pack` made bytes of; `where` is what errors about its images call it."""
    start = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:start])
    files = []
    for size in header["images"]:
        files.append(data[start : start + size])
        start += size
    if start != len(data):
        raise ValueError(f"{where} has {len(data)} bytes where its header says {start}")
    talks = tuple(tuple(Message(role, text) for role, text in talk) for talk in header["conversations"])
    regions = tuple(Region(tuple(box), phrase) for box, phrase in header["regions"])
    names = [str(n) for n in range(len(files))]
    return Record(from_bytes(files, names, where), header["caption"], talks, regions, header["meta"])


def writer(path: str) -> Any:
    """Takes packed records by `write` and is to be closed.

    A group of one makes each record readable alone; image files do not compress any further.
    """
    return ArrayRecordWriter(path, "group_size:1,uncompressed")
