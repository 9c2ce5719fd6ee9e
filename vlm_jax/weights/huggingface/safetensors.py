"""Safetensors files of a folder, single or sharded, read tensor by tensor. Pickles are refused.

The header is read here, not by the library: that maps whole files into memory, which then count as the process's own, and
opens local files alone. Format: https://github.com/huggingface/safetensors (8 bytes of length, JSON, data without gaps).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any, BinaryIO, Callable, Iterable, Iterator

import ml_dtypes  # noqa: F401  (gives NumPy the name bfloat16)
import numpy as np
from etils import epath
from safetensors.numpy import save_file

from vlm_jax.data.files import read_json, write_atomically

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
ITEMSIZE = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
            "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
LARGEST_HEADER = 100_000_000  # bytes, the format's own limit


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of a file: its name and dtype there, its shape, and its first byte counted from the file's start."""

    file: epath.Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


class Reader:
    """Tensors by name; each is read from disk when it is asked for, and nothing is kept.

    `folder` may also be one file. `rename` gives the name a tensor of the files is known by, or None to pass it over.
    """

    def __init__(self, folder: epath.PathLike, rename: Callable[[str], str | None] = lambda name: name):
        self.folder = epath.Path(folder)
        self._entries: dict[str, Entry] = {}
        self._open: dict[epath.Path, BinaryIO] = {}
        self.add(self.folder, rename)

    @property
    def names(self) -> set[str]:
        return set(self._entries)

    def add(self, folder: epath.Path, rename: Callable[[str], str | None]) -> None:
        """The tensors of one more folder; raises ValueError where its index promises others."""
        promised = dict(_promised(folder))
        for file in _files(folder):
            for entry in header(file):
                promised.pop(entry.name, None)
                name = rename(entry.name)
                if name in self._entries:
                    raise ValueError(f"'{entry.name}' and '{self._entries[name].name}' in {folder} are the same "
                                     f"tensor under two names; keep one of them.")
                if name is not None:
                    self._entries[name] = entry
        if promised:
            name, file = promised.popitem()
            raise ValueError(f"{folder / INDEX} says that {file} holds '{name}', which none does; fetch all of them again.")

    def read(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        if entry.file not in self._open:
            self._open[entry.file] = entry.file.open("rb")
        self._open[entry.file].seek(entry.start)
        return np.frombuffer(self._open[entry.file].read(entry.nbytes), self.dtype(name)).reshape(entry.shape)

    def dtype(self, name: str) -> np.dtype:
        """As stored; raises ValueError for a quantised or integer tensor."""
        entry = self._entries[name]
        if entry.dtype not in DTYPES:
            raise ValueError(f"'{entry.name}' in {self.folder} is stored as {entry.dtype}; weights are "
                             f"{', '.join(DTYPES)}.")
        return np.dtype(DTYPES[entry.dtype])

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def header(file: epath.Path) -> list[Entry]:
    """The tensors of a file in the order of their data; raises ValueError unless they fill it without gap or overlap."""
    try:
        return _entries(file)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file} is not a valid safetensors file ({error}); copy it again.") from error


def _entries(file: epath.Path) -> list[Entry]:
    total = file.stat().length
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if total < 8 or length > min(total - 8, LARGEST_HEADER):
            raise ValueError(f"it has {total} bytes, its header claims {length}")
        said = json.loads(handle.read(length), object_pairs_hook=_unique)
    said.pop("__metadata__", None)
    entries, at = [], 0
    for name, value in sorted(said.items(), key=lambda item: item[1]["data_offsets"]):
        (start, end), shape = value["data_offsets"], tuple(value["shape"])
        if value["dtype"] not in ITEMSIZE or not all(type(n) is int and n >= 0 for n in (start, end, *shape)):
            raise ValueError(f"the dtype, shape or place of '{name}' makes no sense")
        entry = Entry(file, name, value["dtype"], shape, 8 + length + start)
        if start != at or end - start != entry.nbytes:
            raise ValueError(f"the data of '{name}' should be the {entry.nbytes} bytes from {at} on, not {start} to {end}")
        entries.append(entry)
        at = end
    if at != total - 8 - length:
        raise ValueError(f"its tensors take {at} of {total - 8 - length} bytes")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different, where Python would take the last of several."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it says a name twice")
    return values


def _files(folder: epath.Path) -> list[epath.Path]:
    if folder.suffix == ".safetensors" and not folder.is_dir():
        if not folder.exists():
            raise FileNotFoundError(f"There is no file {folder}.")
        return [folder]
    if folder.suffix in PICKLES:
        raise ValueError(
            f"{folder} is pickled, which can run code when opened; convert it once: python -c \"import torch; from "
            f"safetensors.torch import save_file; w = torch.load('{folder}', weights_only=True); "
            f"save_file(w.get('model', w), '{folder.with_suffix('.safetensors')}')\"")
    if said := _promised(folder):
        shards = sorted(set(said.values()))
        missing = [name for name in shards if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(f"{folder / INDEX} names {missing[0]}, which is not there; fetch all shards.")
        return [folder / name for name in shards]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    files = sorted(folder.iterdir()) if folder.exists() else []
    found = [file for file in files if file.suffix == ".safetensors"]
    if not found and any(file.suffix in PICKLES for file in files):
        raise ValueError(f"{folder} holds only pickled weights, which can run code when opened; convert them once: "
                         f"python -c \"import transformers; transformers.{_class(folder)}.from_pretrained('{folder}')"
                         f".save_pretrained('OUT')\"")
    if not found:
        raise FileNotFoundError(f"There is no {SINGLE} in {folder}.")
    return found


def _promised(folder: epath.Path) -> dict[str, str]:
    """{tensor: the file beside it that holds it} of the folder's index, if it has one."""
    if not (folder / INDEX).exists():
        return {}
    said = read_json(folder / INDEX).get("weight_map")
    beside = lambda name: isinstance(name, str) and name == os.path.basename(name) and name.endswith(".safetensors")
    if not isinstance(said, dict) or not said or not all(map(beside, said.values())):
        raise ValueError(f"{folder / INDEX} has no weight_map from tensors to files beside it; copy it again.")
    return said


def _class(folder: epath.Path) -> str:
    """The class of transformers that opens all of a checkpoint; AutoModel, say, would drop an output layer."""
    names = read_json(folder / "config.json").get("architectures") if (folder / "config.json").exists() else None
    return names[0] if isinstance(names, list) and names else "CLASS"


def write(folder: epath.Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int = 5 * 10**9) -> None:
    """Writes tensors as one file, or as shards of at most `shard_bytes` with an index, as transformers does.

    Holds one shard in memory at a time.
    """
    shards: list[list[str]] = []  # the names in each
    total = 0
    part = lambda i: folder / f".shard-{i}.part"  # the files' names say how many there are, known only at the end
    for i, shard in enumerate(_shards(tensors, shard_bytes)):
        save_file(shard, part(i), metadata={"format": "pt"})
        shards.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = [SINGLE]
    else:
        names = {name: file for file, shard in zip(files, shards) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": names}
        write_atomically(folder / INDEX, json.dumps(index, indent=2) + "\n")
    for i, file in enumerate(files):
        os.chmod(part(i), 0o644)  # the library lets nobody else read what it writes
        part(i).replace(folder / file)


def _shards(tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    shard, size = {}, 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard
