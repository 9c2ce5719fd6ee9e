"""Safetensors files of a folder, single or sharded, read tensor by tensor. Pickles are refused."""

from __future__ import annotations

import json
import os
from typing import Any, Callable, Iterable, Iterator

import ml_dtypes  # noqa: F401  (gives NumPy the name bfloat16)
import numpy as np
import safetensors
from etils import epath
from safetensors.numpy import save_file

from vlm_jax.weights.files import read_json, write_atomically

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


class Reader:
    """Tensors by name; each is read from disk when it is asked for.

    `rename` gives the name a tensor of the files is known by, or None to pass it over.
    """

    def __init__(self, folder: epath.PathLike, rename: Callable[[str], str | None] = lambda name: name):
        self.folder = epath.Path(folder)
        self._files: dict[str, tuple[Any, str]] = {}
        for file in _files(self.folder):
            try:
                handle = safetensors.safe_open(file, framework="np")
            except Exception as error:  # the library's own type, OSError, and what a hostile header leads to
                raise ValueError(f"{file} is not a valid safetensors file ({error}); copy it again.") from error
            for stored in handle.keys():
                name = rename(stored)
                if name in self._files:
                    raise ValueError(f"'{stored}' and '{self._files[name][1]}' in {self.folder} are the same tensor under "
                                     f"two names; keep one of them.")
                if name is not None:
                    self._files[name] = (handle, stored)
        self.names = set(self._files)

    def read(self, name: str) -> np.ndarray:
        handle, stored = self._files[name]
        return handle.get_tensor(stored)

    def dtype(self, name: str) -> np.dtype:
        """As stored; raises ValueError for a quantised or integer tensor."""
        handle, stored = self._files[name]
        kind = handle.get_slice(stored).get_dtype()
        if kind not in DTYPES:
            raise ValueError(f"'{stored}' in {self.folder} is stored as {kind}; weights are {', '.join(DTYPES)}.")
        return np.dtype(DTYPES[kind])

    def shape(self, name: str) -> tuple[int, ...]:
        handle, stored = self._files[name]
        return tuple(handle.get_slice(stored).get_shape())


def _files(folder: epath.Path) -> list[epath.Path]:
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict) or not all(name == os.path.basename(str(name)) for name in names.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map from tensors to files beside it; copy it again.")
        shards = sorted(set(names.values()))
        missing = [name for name in shards if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(f"{folder / INDEX} names {missing[0]}, which is not there; fetch all shards.")
        return [folder / name for name in shards]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    files = sorted(folder.iterdir()) if folder.exists() else []
    found = [file for file in files if file.suffix == ".safetensors"]
    if not found and any(file.suffix in PICKLES for file in files):
        raise ValueError(f"{folder} holds only pickled weights, which can run code when opened; convert them once with "
                         f"transformers: AutoModel.from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True).")
    if not found:
        raise FileNotFoundError(f"There is no {SINGLE} in {folder}.")
    return found


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
