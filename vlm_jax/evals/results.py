"""What an evaluation gives back, and the files it becomes (the report reads them, and knows no model):

    eval/<task>.json    task, metrics, and the task's extras: what was measured, on what
    eval/<task>.jsonl   one record for each example
    eval/gallery/       the pictures that records name
"""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any, Mapping

import numpy as np
from etils import epath
from PIL import Image

from vlm_jax.data.files import write_atomically

GALLERY = 24  # records whose pictures are kept
THUMBNAIL = 256  # pixels, the longer side; the report holds its pictures inline


@dataclasses.dataclass(frozen=True)
class Result:
    """metrics: figures by name; `task/part` is a part of `task_...`. records: what became of each example.

    extras: further facts, joined to the JSON. pictures: uint8 H x W x 3 by their path under eval/.
    """

    task: str
    metrics: Mapping[str, float]
    records: list[dict[str, Any]]
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def gallery_path(task: str, index: int) -> str:
    """Where the picture of record `index` goes; tasks may run on different data and share none."""
    return f"gallery/{task}-{index}.png"


def write(result: Result, folder: epath.Path) -> None:
    """Writes the files of a result, each under another name and then renamed; the figures come last."""
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    for name, picture in result.pictures.items():
        write_atomically(folder / name, _png(picture))
    lines = "".join(json.dumps(record) + "\n" for record in result.records)
    write_atomically(folder / f"{result.task}.jsonl", lines)
    figures = {"task": result.task, "metrics": dict(result.metrics), **result.extras}
    write_atomically(folder / f"{result.task}.json", (json.dumps(figures, indent=1) + "\n"))


def _png(picture: np.ndarray) -> bytes:
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))  # only ever shrinks
    image.save(buffer, "PNG")
    return buffer.getvalue()
