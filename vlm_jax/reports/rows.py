"""One stand-alone HTML page about what a pipeline delivers: rows of tokens with their images and who may see whom."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image

from vlm_jax.reports import pages

PICTURE = 384  # pixels, the side of the picture of a mask at most
PAPER, INK = (238, 238, 232), ((48, 88, 196), (27, 122, 75), (185, 50, 38), (150, 96, 10), (120, 60, 170))


@dataclasses.dataclass(frozen=True)
class Token:
    """A token, or a run of visual tokens of one image, as it is shown.

    `weight`: of the loss where this token is to be said. `segment`, `branch`, `position`: as the mask reads them.
    """

    text: str
    weight: float = 0.0
    segment: int = 0
    branch: int = 0
    position: int = 0
    visual: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """`images` are uint8 H x W x 3, as the model sees them; `mask` [t, t], true where token t may see token s, with the
    segment of each token; `origins` name the records."""

    origins: Sequence[str]
    images: Sequence[np.ndarray]
    tokens: Sequence[Token]
    mask: np.ndarray | None = None
    segments: np.ndarray | None = None


def write_rows(path: epath.Path, title: str, figures: Mapping[str, str], rows: Sequence[Row]) -> epath.Path:
    """Writes the page; `figures` are shown above the rows, label and value."""
    shown = [{"origins": row.origins, "images": [png(image) for image in row.images], "tokens": row.tokens,
              "mask": None if row.mask is None else png(mask_picture(row.mask, row.segments)),
              "length": 0 if row.mask is None else len(row.mask)} for row in rows]
    return pages.write(path, pages.template("rows.html").render(title=title, figures=figures, rows=shown))


def mask_picture(mask: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """A mask [t, s] as an image, uint8: token t (down) sees token s (across) in the colour of its segment.

    Of a long row each pixel stands for several tokens, and is coloured where any of them sees any.
    """
    step = -(-len(mask) // PICTURE)
    size = -(-len(mask) // step)
    padded = np.zeros((size * step,) * 2, bool)
    padded[: len(mask), : len(mask)] = mask
    seen = padded.reshape(size, step, size, step).any(axis=(1, 3))
    colours = np.array(INK, np.uint8)[np.maximum(segments[::step], 0) % len(INK)]
    picture = np.where(seen[:, :, None], colours[:, None], np.array(PAPER, np.uint8))
    scale = max(PICTURE // size, 1)  # whole pixels, so that the grid stays a grid
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def png(image: np.ndarray) -> str:
    """An image as a data URI."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
