"""Small files: written whole or not at all, read with a sentence where they are damaged."""

from __future__ import annotations

import json
import os
from typing import Any

from etils import epath


def write_atomically(path: epath.Path, data: str | bytes) -> None:
    """Writes beside and renames, so that a reader (or a kill) sees the old file or the new one, never a half.

    The name beside is this process's own: several may write the same file, as workers of one `prepare` do.
    """
    part = path.parent / f".{path.name}-{os.getpid()}.part"
    part.write_bytes(data.encode() if isinstance(data, str) else data)
    part.replace(path)


def read_json(path: epath.Path) -> dict[str, Any]:
    """A JSON object at rest; raises a sentence that names the file where it is missing or damaged."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the workdir of a training run.")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; copy it again.")
    return values
