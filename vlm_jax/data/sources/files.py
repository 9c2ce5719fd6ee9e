"""Data sets of many files: which they are, and bytes out of the middle of one."""

from __future__ import annotations

import collections
import os
import threading

from etils import epath

OPEN_FILES = 32  # at a time, of each reader


def shards(path: str, suffixes: tuple[str, ...]) -> list[epath.Path]:
    """The files that a path means, sorted by name: a file, all files of a folder with these suffixes, or a pattern
    whose last part has wildcards (`train-*.tar`). Raises FileNotFoundError where there is none."""
    path = epath.Path(path)
    if any(mark in path.name for mark in "*?["):
        found = list(path.parent.glob(path.name))
    elif path.is_dir():
        found = [file for suffix in suffixes for file in path.glob(f"*{suffix}")]
    else:
        found = [path] if path.exists() else []
    if not found:
        raise FileNotFoundError(f"{path} is no file, pattern or folder with {' or '.join(suffixes)} files; check the "
                                f"path")
    return sorted(found)


class RangeReader:
    """Reads bytes at an offset of a file; keeps the files that were read last open.

    Any thread may ask. A copy for another process starts with no file open: two processes must not share an offset.
    """

    def __init__(self):
        self._open, self._lock, self._process = collections.OrderedDict(), threading.Lock(), os.getpid()

    def __reduce__(self):
        return RangeReader, ()

    def read(self, file: epath.Path, offset: int, size: int) -> bytes:
        """Raises ValueError where the file ends before."""
        if self._process != os.getpid():
            self.__init__()
        with self._lock:
            if file not in self._open:
                self._open[file] = file.open("rb")
                if len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)[1].close()
            self._open.move_to_end(file)
            self._open[file].seek(offset)
            data = self._open[file].read(size)
        if len(data) < size:
            raise ValueError(f"{file} ends {size - len(data)} bytes before it should; it was cut short or changed: "
                             f"fetch it again")
        return data
